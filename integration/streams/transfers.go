package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/tools/remotecommand"
)

// slack is how much the server's memory may grow over a large transfer, in KiB.
const slack = 16 << 10

// counter counts what is written to it.
type counter struct{ n int64 }

func (c *counter) Write(bytes []byte) (int, error) {
	c.n += int64(len(bytes))
	return len(bytes), nil
}

type zeros struct{}

func (zeros) Read(bytes []byte) (int, error) {
	clear(bytes)
	return len(bytes), nil
}

// counted says whether wc has counted all: busybox's does it in 32 bits.
func counted(text string) bool {
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	return err == nil && (n == *size || n == int64(uint32(*size)))
}

func input() io.Reader { return io.LimitReader(zeros{}, *size) }

// flat runs a transfer and checks the server's memory.
func flat(s *server, run func() error) error {
	before, begin := s.memory("VmRSS"), time.Now()
	if err := run(); err != nil {
		return err
	}
	rate := float64(*size) / 1e6 / time.Since(begin).Seconds()
	if after := s.memory("VmRSS"); after > before+slack {
		return fmt.Errorf("the server's memory went from %d to %d KiB", before, after)
	}
	fmt.Printf("      %.0f MB/s\n", rate)
	return nil
}

// transfers are the cases that move much.
func transfers() []test {
	var tests []test
	for _, transport := range []string{"spdy", "websocket"} {
		protocol := versions[1]
		if transport == "websocket" {
			protocol = versions[0]
		}
		add := func(name string, run func(*server) error) {
			tests = append(tests, test{"large: exec over " + transport + ": " + name, func(s *server) error {
				return flat(s, func() error { return run(s) })
			}})
		}
		add("stdout", func(s *server) error {
			var out counter
			err := stream(s, transport, protocol, request{Exec: []string{"head", "-c", fmt.Sprint(*size), "/dev/zero"}}, remotecommand.StreamOptions{Stdout: &out})
			if out.n != *size {
				return fmt.Errorf("%d of %d bytes, %v", out.n, *size, err)
			}
			return err
		})
		add("stdin", func(s *server) error {
			var out bytes.Buffer
			err := stream(s, transport, protocol, request{Exec: []string{"wc", "-c"}}, remotecommand.StreamOptions{Stdin: input(), Stdout: &out})
			if !counted(out.String()) {
				return fmt.Errorf("%q of %d bytes, %v", out.String(), *size, err)
			}
			return err
		})
		add("stdin to stdout", func(s *server) error {
			var out counter
			err := stream(s, transport, protocol, request{Exec: []string{"cat"}}, remotecommand.StreamOptions{Stdin: input(), Stdout: &out})
			if out.n != *size {
				return fmt.Errorf("%d of %d bytes, %v", out.n, *size, err)
			}
			return err
		})
		add("a client that does not read, then vanishes", func(s *server) error {
			ctx, leave := context.WithCancel(context.Background())
			first, wait := make(chan struct{}), make(chan struct{})
			ended := make(chan error, 1)
			go func() {
				seen := false
				ended <- streamContext(ctx, s, transport, protocol, request{Exec: []string{"yes"}}, remotecommand.StreamOptions{Stdout: writer(func([]byte) {
					if !seen {
						seen = true
						close(first)
						<-wait
					}
				})})
			}()
			<-first
			time.Sleep(2 * time.Second)
			leave()
			close(wait)
			<-ended
			return nil
		})
	}
	for _, transport := range []string{"spdy", "tunnel"} {
		tests = append(tests, test{"large: port-forward over " + transport, func(s *server) error {
			return flat(s, func() error { return thereAndBack(s, transport) })
		}})
	}
	return tests
}

// thereAndBack moves much through a pod that sends it back.
func thereAndBack(s *server, transport string) error {
	address, leave, err := reach(s, transport, echo)
	if err != nil {
		return err
	}
	defer leave()
	connection, err := connect(address)
	if err != nil {
		return err
	}
	defer connection.Close()
	go func() {
		io.Copy(connection, input())
		connection.CloseWrite()
	}()
	var out counter
	_, err = io.Copy(&out, connection)
	if out.n != *size {
		return fmt.Errorf("%d of %d bytes came back, %v", out.n, *size, err)
	}
	return err
}
