// streams drives a streaming server with the libraries behind kubectl: remotecommand over SPDY and WebSocket in every
// version, port-forward over SPDY and through its tunnel, and the WebSocket channels of older clients.
//
//	streams [-size BYTES] [-run WORD] [-tls] PROGRAM [ARGUMENT...]
//	streams [-size BYTES] [-run WORD] -cri SOCKET -container ID -pod ID [-web POD:PORT] [-process PID]
//	streams -bench ROUNDS [-size BYTES] -crictl PROGRAM NAME=SOCKET=CONTAINER=POD...
//
// PROGRAM takes requests as JSON lines and answers with URLs (cri-shim/examples/streaming.rs); with -tls it also gets the paths of
// a certificate and its key. A CRI server is asked for URLs itself (cri.go says what container and pods must be). A line per
// case, and failure if one fails. -bench measures servers, taking turns (bench.go).
package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/tools/remotecommand"
)

// request is what is asked of a server.
type request struct {
	Exec    []string `json:"exec,omitempty"`
	Attach  string   `json:"attach,omitempty"`
	Forward bool     `json:"-"`
	Pod     string   `json:"pod,omitempty"`
	Ports   []uint16 `json:"ports,omitempty"`
	Stdin   bool     `json:"stdin,omitempty"`
	Stdout  bool     `json:"stdout,omitempty"`
	Stderr  bool     `json:"stderr,omitempty"`
	TTY     bool     `json:"tty,omitempty"`
}

// server is what is driven.
type server struct {
	url     func(request) (string, error)
	attach  func(s *server, transport, protocol string) error
	process int
	end     func()
}

// start runs PROGRAM.
func start(arguments []string) (*server, error) {
	command := exec.Command(arguments[0], arguments[1:]...)
	command.Stderr = os.Stderr
	in, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	pipe, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	var mutex sync.Mutex
	out := bufio.NewReader(pipe)
	ask := func(r request) (string, error) {
		mutex.Lock()
		defer mutex.Unlock()
		if r.Forward {
			r.Pod = "host"
		}
		if err := json.NewEncoder(in).Encode(r); err != nil {
			return "", err
		}
		line, err := out.ReadString('\n')
		line = strings.TrimSpace(line)
		if text, failed := strings.CutPrefix(line, "error: "); failed {
			return "", fmt.Errorf("%s", text)
		}
		return line, err
	}
	return &server{url: ask, attach: attachProgram, process: command.Process.Pid, end: func() { in.Close(); command.Wait() }}, nil
}

// attachProgram is attached to what prints and exits: nothing starts before.
func attachProgram(s *server, transport, protocol string) error {
	var out bytes.Buffer
	err := stream(s, transport, protocol, request{Attach: "echo from the container; exit 7"}, remotecommand.StreamOptions{Stdout: &out})
	if out.String() != "from the container\n" {
		return fmt.Errorf("stdout %q", out.String())
	}
	return err
}

// memory is a figure of /proc/PID/status in KiB.
func (s *server) memory(field string) int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.process))
	for _, line := range strings.Split(string(text), "\n") {
		if rest, found := strings.CutPrefix(line, field+":"); found {
			var value int
			fmt.Sscan(rest, &value)
			return value
		}
	}
	return 0
}

// test is a case.
type test struct {
	name string
	run  func(*server) error
}

var size = flag.Int64("size", 1<<30, "bytes to move in each direction of the large transfers")

// patience is how long a case may take: three minutes, and as long as its bytes take at 5 MB/s.
func patience() time.Duration { return 3*time.Minute + time.Duration(*size/5_000_000)*time.Second }

func main() {
	if !run() {
		os.Exit(1)
	}
}

// run runs the cases and says whether all are well.
func run() bool {
	only := flag.String("run", "", "run cases with this word in their names")
	secure := flag.Bool("tls", false, "let PROGRAM serve TLS")
	socket := flag.String("cri", "", "the socket of a CRI server")
	var ids ids
	flag.StringVar(&ids.container, "container", "", "the container that cases run in")
	flag.StringVar(&ids.pod, "pod", "", "a pod of the host's network")
	flag.StringVar(&ids.web, "web", "", "POD:PORT that has a page")
	process := flag.Int("process", 0, "the CRI server's process, whose memory is watched")
	rounds := flag.Int("bench", 0, "how often to measure")
	crictl := flag.String("crictl", "crictl", "the program")
	flag.Parse()
	arguments := flag.Args()
	if *rounds > 0 {
		err := bench(*rounds, *crictl, arguments)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return err == nil
	}
	if *secure {
		dir, err := os.MkdirTemp("", "streams")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return false
		}
		defer os.RemoveAll(dir)
		cert, key := dir+"/cert.pem", dir+"/key.pem"
		if err := certificate(cert, key); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return false
		}
		arguments = append(arguments, cert, key)
	}
	tests := append(append(commands(), forwards()...), transfers()...)
	var s *server
	var err error
	if *socket != "" {
		s, err = connectCRI(*socket, ids)
		tests = append(tests, web(ids)...)
	} else {
		s, err = start(arguments)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return false
	}
	if *process != 0 {
		s.process = *process
	}
	failed := 0
	for _, t := range tests {
		if !strings.Contains(t.name, *only) {
			continue
		}
		done, begin := make(chan error, 1), time.Now()
		go func() { done <- t.run(s) }()
		select {
		case err = <-done:
		case <-time.After(patience()):
			err = fmt.Errorf("no end after %s", patience())
		}
		took := time.Since(begin).Round(time.Millisecond)
		if err != nil {
			failed++
			fmt.Printf("FAIL %s (%s)\n     %v\n", t.name, took, err)
		} else {
			fmt.Printf("PASS %s (%s)\n", t.name, took)
		}
	}
	if s.process != 0 {
		fmt.Printf("the server's memory: now %d KiB, at most %d KiB\n", s.memory("VmRSS"), s.memory("VmHWM"))
	}
	s.end()
	return failed == 0
}

// certificate writes a self-signed certificate and its key.
func certificate(cert, key string) error {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	signed, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return err
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return err
	}
	if err := os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}), 0o600)
}
