package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// listen is a pod's port: handle gets each of its connections.
func listen(handle func(*net.TCPConn)) (uint16, func(), error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, nil, err
	}
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go handle(connection.(*net.TCPConn))
		}
	}()
	return uint16(listener.Addr().(*net.TCPAddr).Port), func() { listener.Close() }, nil
}

// forward opens a port-forward as kubectl does and returns the local port.
func forward(s *server, transport string, port uint16) (string, func(), error) {
	address, err := s.url(request{Forward: true})
	if err != nil {
		return "", nil, err
	}
	parsed, err := url.Parse(address)
	if err != nil {
		return "", nil, err
	}
	var dialer httpstream.Dialer
	if transport == "tunnel" {
		dialer, err = portforward.NewSPDYOverWebsocketDialer(parsed, config())
	} else {
		roundTripper, upgrader, failed := spdy.RoundTripperFor(config())
		dialer, err = spdy.NewDialer(upgrader, &http.Client{Transport: roundTripper}, "POST", parsed), failed
	}
	if err != nil {
		return "", nil, err
	}
	stop, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, stop, ready, nil, io.Discard)
	if err != nil {
		return "", nil, err
	}
	go func() { ended <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		return "", nil, err
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0].Local), sync.OnceFunc(func() { close(stop); <-ended }), nil
}

// reach opens a port-forward to a pod's port where handle gets each connection, and returns the local port.
func reach(s *server, transport string, handle func(*net.TCPConn)) (string, func(), error) {
	port, stop, err := listen(handle)
	if err != nil {
		return "", nil, err
	}
	address, leave, err := forward(s, transport, port)
	if err != nil {
		stop()
		return "", nil, err
	}
	return address, func() { leave(); stop() }, nil
}

// echo sends back what comes.
func echo(c *net.TCPConn) {
	io.Copy(c, c)
	c.Close()
}

// connect makes one connection through a forward.
func connect(address string) (*net.TCPConn, error) {
	connection, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	connection.SetDeadline(time.Now().Add(patience()))
	return connection.(*net.TCPConn), nil
}

// ask sends text, ends, and reads the answer to its end.
func ask(address, text string) (string, error) {
	connection, err := connect(address)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	io.WriteString(connection, text)
	connection.CloseWrite()
	answer, err := io.ReadAll(connection)
	return string(answer), err
}

// forwards are the cases of port-forward.
func forwards() []test {
	var tests []test
	for _, transport := range []string{"spdy", "tunnel"} {
		add := func(name string, run func(*server) error) {
			tests = append(tests, test{"port-forward over " + transport + ": " + name, run})
		}
		add("an answer after the client's half-close", func(s *server) error {
			address, leave, err := reach(s, transport, func(c *net.TCPConn) {
				text, _ := io.ReadAll(c)
				time.Sleep(1500 * time.Millisecond)
				fmt.Fprintf(c, "%d bytes", len(text))
				c.Close()
			})
			if err != nil {
				return err
			}
			defer leave()
			answer, err := ask(address, strings.Repeat("x", 100000))
			if answer != "100000 bytes" {
				return fmt.Errorf("answer %q, %v", answer, err)
			}
			return nil
		})
		add("a pod that resets its connection disturbs no other", func(s *server) error { return reset(s, transport) })
		add("a hundred connections at once", func(s *server) error { return many(s, transport) })
		add("a port where nobody listens", func(s *server) error {
			port, stop, err := listen(func(c *net.TCPConn) { c.Close() })
			if err != nil {
				return err
			}
			stop()
			address, leave, err := forward(s, transport, port)
			if err != nil {
				return err
			}
			defer leave()
			answer, err := ask(address, "")
			if answer != "" {
				return fmt.Errorf("answer %q, %v", answer, err)
			}
			return nil
		})
		add("a client that leaves right after its last byte", func(s *server) error {
			got := make(chan int, 1)
			address, leave, err := reach(s, transport, func(c *net.TCPConn) {
				time.Sleep(300 * time.Millisecond)
				text, _ := io.ReadAll(c)
				got <- len(text)
			})
			if err != nil {
				return err
			}
			connection, err := connect(address)
			if err != nil {
				return err
			}
			io.WriteString(connection, strings.Repeat("x", 50000))
			connection.CloseWrite()
			time.Sleep(100 * time.Millisecond)
			leave()
			if length := <-got; length != 50000 {
				return fmt.Errorf("%d of 50000 bytes arrived", length)
			}
			return nil
		})
	}
	for _, protocol := range []string{"", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"} {
		tests = append(tests, test{fmt.Sprintf("port-forward over websocket channels, protocol %q", protocol), func(s *server) error {
			return twoPorts(s, protocol, strings.Contains(protocol, "base64"))
		}})
	}
	return tests
}

// reset: a connection that the pod resets, beside one that goes on.
func reset(s *server, transport string) error {
	address, leave, err := reach(s, transport, func(c *net.TCPConn) {
		first := make([]byte, 1)
		io.ReadFull(c, first)
		if first[0] == 'r' {
			c.SetLinger(0)
			c.Close()
			return
		}
		io.Copy(c, io.MultiReader(bytes.NewReader(first), c))
		c.Close()
	})
	if err != nil {
		return err
	}
	defer leave()
	steady, err := connect(address)
	if err != nil {
		return err
	}
	defer steady.Close()
	echo := make([]byte, 4)
	for range 5 {
		if _, err := io.WriteString(steady, "ping"); err != nil {
			return err
		}
		if _, err := io.ReadFull(steady, echo); err != nil || string(echo) != "ping" {
			return fmt.Errorf("the steady connection: %q, %v", echo, err)
		}
		broken, err := connect(address)
		if err != nil {
			return err
		}
		io.WriteString(broken, "reset")
		if answer, err := io.ReadAll(broken); len(answer) > 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
			return fmt.Errorf("the broken connection: %q, %v", answer, err)
		}
		broken.Close()
	}
	return nil
}

// many connections, each with its own text.
func many(s *server, transport string) error {
	address, leave, err := reach(s, transport, echo)
	if err != nil {
		return err
	}
	defer leave()
	results := make(chan error, 100)
	for i := range 100 {
		go func() {
			text := strings.Repeat(fmt.Sprintf("connection %d ", i), 5000)
			answer, err := ask(address, text)
			if answer != text {
				err = fmt.Errorf("connection %d: %d of %d bytes, %v", i, len(answer), len(text), err)
			}
			results <- err
		}()
	}
	var all error
	for range 100 {
		all = errors.Join(all, <-results)
	}
	return all
}

// twoPorts are forwarded over four channels; a third has nobody.
func twoPorts(s *server, protocol string, text bool) error {
	var ports []uint16
	for i := range 2 {
		port, stop, err := listen(func(c *net.TCPConn) {
			got := make([]byte, 5)
			io.ReadFull(c, got)
			fmt.Fprintf(c, "%s from %d", got, i)
			c.Close()
		})
		if err != nil {
			return err
		}
		defer stop()
		ports = append(ports, port)
	}
	address, err := s.url(request{Forward: true, Ports: append(ports, 1)})
	if err != nil {
		return err
	}
	connection, err := dial(address, protocol)
	if err != nil {
		return err
	}
	defer connection.Close()
	send(connection, text, 0, "hello")
	send(connection, text, 2, "world")
	got := map[int]string{}
	for {
		channel, payload, err := receive(connection, text)
		if err != nil {
			break
		}
		got[channel] += string(payload)
	}
	for i, want := range []string{"hello from 0", "", "world from 1", ""} {
		port := binary.LittleEndian.AppendUint16(nil, ports[i/2])
		if got[i] != string(port)+want {
			return fmt.Errorf("channel %d: %q", i, got[i])
		}
	}
	if !strings.Contains(got[5], "refused") {
		return fmt.Errorf("the error of port 1: %q", got[5])
	}
	return nil
}
