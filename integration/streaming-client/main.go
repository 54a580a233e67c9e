// streaming-client drives rrun-cri's streaming server with the libraries behind kubectl: remotecommand over SPDY and
// WebSocket in every version, port-forward over SPDY and through its tunnel, and the WebSocket channels of older clients.
//
//	streaming-client [-size BYTES] [-run WORD] [-tls] PROGRAM [ARGUMENT...]
//
// With -tls PROGRAM also gets the paths of a certificate and its key. It takes requests as JSON lines and answers with URLs (cri-shim/examples/streaming.rs).
// The client prints a line per case and fails if one does.
package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// request is what PROGRAM takes.
type request struct {
	Exec   []string `json:"exec,omitempty"`
	Attach string   `json:"attach,omitempty"`
	Pod    string   `json:"pod,omitempty"`
	Ports  []uint16 `json:"ports,omitempty"`
	Stdin  bool     `json:"stdin,omitempty"`
	Stdout bool     `json:"stdout,omitempty"`
	Stderr bool     `json:"stderr,omitempty"`
	TTY    bool     `json:"tty,omitempty"`
}

// server is PROGRAM, running.
type server struct {
	command *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	mutex   sync.Mutex
}

func start(arguments []string) (*server, error) {
	command := exec.Command(arguments[0], arguments[1:]...)
	command.Stderr = os.Stderr
	in, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &server{command: command, in: in, out: bufio.NewReader(out)}, command.Start()
}

// url asks for an URL.
func (s *server) url(r request) (string, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if err := json.NewEncoder(s.in).Encode(r); err != nil {
		return "", err
	}
	line, err := s.out.ReadString('\n')
	line = strings.TrimSpace(line)
	if text, failed := strings.CutPrefix(line, "error: "); failed {
		return "", fmt.Errorf("%s", text)
	}
	return line, err
}

// memory is a figure of /proc/PID/status in KiB.
func (s *server) memory(field string) int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.command.Process.Pid))
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

func main() {
	if !run() {
		os.Exit(1)
	}
}

// run runs the cases and says whether all are well.
func run() bool {
	only := flag.String("run", "", "run cases with this word in their names")
	secure := flag.Bool("tls", false, "let PROGRAM serve TLS")
	flag.Parse()
	arguments := flag.Args()
	if *secure {
		dir, err := os.MkdirTemp("", "streaming-client")
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
	s, err := start(arguments)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return false
	}
	failed := 0
	for _, t := range append(append(commands(), forwards()...), transfers()...) {
		if !strings.Contains(t.name, *only) {
			continue
		}
		done, begin := make(chan error, 1), time.Now()
		go func() { done <- t.run(s) }()
		select {
		case err = <-done:
		case <-time.After(3 * time.Minute):
			err = fmt.Errorf("no end after three minutes")
		}
		took := time.Since(begin).Round(time.Millisecond)
		if err != nil {
			failed++
			fmt.Printf("FAIL  %s (%s): %v\n", t.name, took, err)
		} else {
			fmt.Printf("ok    %s (%s)\n", t.name, took)
		}
	}
	fmt.Printf("%d failed; the server's memory: now %d KiB, at most %d KiB\n", failed, s.memory("VmRSS"), s.memory("VmHWM"))
	s.in.Close()
	s.command.Wait()
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
