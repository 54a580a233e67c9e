package main

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/tools/remotecommand"
)

// execs of `crictl exec true` per turn.
const execs = 10

// measured is a server with what was seen of it.
type measured struct {
	*server
	name, socket, container string
	seen                    map[string][]float64
}

// bench has CRI servers take turns; the first is compared with the others, by medians. kubelet speaks SPDY to a CRI server.
func bench(rounds int, crictl string, arguments []string) error {
	var servers []*measured
	for _, argument := range arguments {
		parts := strings.Split(argument, "=")
		if len(parts) != 4 {
			return fmt.Errorf("%s: NAME=SOCKET=CONTAINER=POD", argument)
		}
		s, err := connectCRI(parts[1], ids{container: parts[2], pod: parts[3]})
		if err != nil {
			return err
		}
		servers = append(servers, &measured{s, parts[0], parts[1], parts[2], map[string][]float64{}})
	}
	for round := range rounds + 1 {
		for turn := range servers {
			s := servers[(round+turn)%len(servers)]
			if err := s.turn(crictl); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if round == 0 { // it warms caches
				clear(s.seen)
			}
		}
	}
	fmt.Print("| median |")
	for i, s := range servers {
		fmt.Printf(" %s |", s.name)
		if i > 0 {
			fmt.Printf(" to %s |", s.name)
		}
	}
	fmt.Println("\n|---|" + strings.Repeat("--:|", 2*len(servers)-1))
	for _, what := range []string{latency, floor, library, "exec: output, MB/s", "exec: input, MB/s", "port-forward: from the pod, MB/s", "port-forward: to the pod, MB/s"} {
		fmt.Printf("| %s |", what)
		ours := median(servers[0].seen[what])
		for i, s := range servers {
			fmt.Printf(" %.1f |", median(s.seen[what]))
			if i > 0 {
				fmt.Printf(" %.2f |", ours/median(s.seen[what]))
			}
		}
		fmt.Println()
	}
	return nil
}

const (
	latency = "`crictl exec true`, ms"
	floor   = "`crictl version`, ms: the client's own part"
	library = "the same exec by client-go, without a program's start, ms"
)

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// turn measures everything once.
func (s *measured) turn(crictl string) error {
	for range execs {
		for what, run := range map[string]func() ([]byte, error){
			latency: exec.Command(crictl, "--runtime-endpoint", "unix://"+s.socket, "exec", s.container, "true").CombinedOutput,
			floor:   exec.Command(crictl, "--runtime-endpoint", "unix://"+s.socket, "version").CombinedOutput,
			library: func() ([]byte, error) {
				return nil, stream(s.server, "spdy", versions[1], request{Exec: []string{"true"}}, remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard})
			},
		} {
			begin := time.Now()
			if out, err := run(); err != nil {
				return fmt.Errorf("%s: %w: %s", what, err, out)
			}
			s.seen[what] = append(s.seen[what], float64(time.Since(begin).Microseconds())/1e3)
		}
	}
	rate := func(what string, run func() error) error {
		begin := time.Now()
		err := run()
		s.seen[what] = append(s.seen[what], float64(*size)/1e6/time.Since(begin).Seconds())
		return err
	}
	err := rate("exec: output, MB/s", func() error {
		var out counter
		err := stream(s.server, "spdy", versions[1], request{Exec: []string{"head", "-c", fmt.Sprint(*size), "/dev/zero"}}, remotecommand.StreamOptions{Stdout: &out})
		if err == nil && out.n != *size {
			err = fmt.Errorf("%d of %d bytes", out.n, *size)
		}
		return err
	})
	if err != nil {
		return err
	}
	err = rate("exec: input, MB/s", func() error {
		var out strings.Builder
		err := stream(s.server, "spdy", versions[1], request{Exec: []string{"wc", "-c"}}, remotecommand.StreamOptions{Stdin: input(), Stdout: &out})
		if err == nil && !counted(out.String()) {
			err = fmt.Errorf("%q of %d bytes", out.String(), *size)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := rate("port-forward: from the pod, MB/s", func() error {
		return s.through(func(c *net.TCPConn) { io.Copy(c, input()); c.Close() }, func(c *net.TCPConn) (int64, error) { return io.Copy(io.Discard, c) })
	}); err != nil {
		return err
	}
	return rate("port-forward: to the pod, MB/s", func() error {
		return s.through(func(c *net.TCPConn) {
			n, _ := io.CopyN(io.Discard, c, *size)
			fmt.Fprintln(c, n)
			c.Close()
		}, func(c *net.TCPConn) (n int64, err error) {
			if _, err := io.Copy(c, input()); err != nil {
				return 0, err
			}
			_, err = fmt.Fscanln(c, &n) // without a half-close, after which containerd gives an answer a second
			return n, err
		})
	})
}

// through has a conversation with a port of the host, which is the pod's.
func (s *measured) through(pod func(*net.TCPConn), client func(*net.TCPConn) (int64, error)) error {
	address, leave, err := reach(s.server, "spdy", pod)
	if err != nil {
		return err
	}
	defer leave()
	connection, err := connect(address)
	if err != nil {
		return err
	}
	defer connection.Close()
	n, err := client(connection)
	if err == nil && n != *size {
		err = fmt.Errorf("%d of %d bytes", n, *size)
	}
	return err
}
