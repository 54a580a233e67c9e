package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	gorilla "github.com/gorilla/websocket"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
)

var versions = []string{"v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"}

func config() *rest.Config {
	return &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// executor speaks one protocol over one transport.
func executor(transport, protocol, address string) (remotecommand.Executor, error) {
	if transport == "websocket" {
		return remotecommand.NewWebSocketExecutorForProtocols(config(), "GET", address, protocol)
	}
	parsed, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	wrapper, upgrader, err := spdy.RoundTripperFor(config())
	if err != nil {
		return nil, err
	}
	return remotecommand.NewSPDYExecutorForProtocols(wrapper, upgrader, "POST", parsed, protocol)
}

// stream runs a request to its end.
func stream(s *server, transport, protocol string, r request, options remotecommand.StreamOptions) error {
	return streamContext(context.Background(), s, transport, protocol, r, options)
}

func streamContext(ctx context.Context, s *server, transport, protocol string, r request, options remotecommand.StreamOptions) error {
	r.Stdin, r.Stdout, r.Stderr, r.TTY = options.Stdin != nil, options.Stdout != nil, options.Stderr != nil, options.Tty
	address, err := s.url(r)
	if err != nil {
		return err
	}
	executor, err := executor(transport, protocol, address)
	if err != nil {
		return err
	}
	return executor.StreamWithContext(ctx, options)
}

// oldest is a protocol whose client does not end stdin, and may return before it has read the error.
const oldest = "channel.k8s.io"

// exitCode checks what a client makes of a command that exits with 3.
func exitCode(protocol string, err error) error {
	if protocol == oldest && err == nil {
		return nil
	}
	if protocol >= "v4" {
		var exit exec.CodeExitError
		if !errors.As(err, &exit) || exit.Code != 3 {
			return fmt.Errorf("want exit code 3, got %v", err)
		}
		return nil
	}
	if err == nil || !strings.HasSuffix(err.Error(), "exit code: 3") {
		return fmt.Errorf("want the text of exit code 3, got %v", err)
	}
	return nil
}

type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size, more := <-s
	if !more {
		return nil
	}
	return &size
}

// commands are the cases of exec and attach.
func commands() []test {
	var tests []test
	add := func(name string, run func(*server) error) { tests = append(tests, test{name, run}) }
	for _, transport := range []string{"spdy", "websocket"} {
		for _, protocol := range versions {
			if transport == "spdy" && protocol == versions[0] {
				continue // it has no v5
			}
			name := transport + " " + protocol
			halfClose := transport == "spdy" && protocol != oldest || protocol == versions[0]
			add(name+": three streams and an exit code", func(s *server) error {
				read, exit := "head -c5", "exit 3"
				if halfClose {
					read = "cat"
				}
				if protocol == oldest && transport == "spdy" {
					// There the client reads no further once it has heard of a failure: that is asked for apart.
					exit = "exit 0"
				}
				script := read + "; echo bad >&2; " + exit
				var out, bad bytes.Buffer
				err := stream(s, transport, protocol, request{Exec: []string{"sh", "-c", script}},
					remotecommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &bad})
				if out.String() != "hello" || bad.String() != "bad\n" {
					return fmt.Errorf("stdout %q, stderr %q", out.String(), bad.String())
				}
				if exit == "exit 0" && err == nil {
					err = stream(s, transport, protocol, request{Exec: []string{"sh", "-c", "exit 3"}}, remotecommand.StreamOptions{Stdout: io.Discard})
				}
				return exitCode(protocol, err)
			})
			add(name+": success, and only stderr", func(s *server) error {
				var bad bytes.Buffer
				err := stream(s, transport, protocol, request{Exec: []string{"sh", "-c", "echo lost; echo bad >&2"}},
					remotecommand.StreamOptions{Stderr: &bad})
				if bad.String() != "bad\n" {
					return fmt.Errorf("stderr %q", bad.String())
				}
				return err
			})
			add(name+": a program that is not there", func(s *server) error {
				err := stream(s, transport, protocol, request{Exec: []string{"/not/there"}}, remotecommand.StreamOptions{Stdout: io.Discard})
				if protocol == oldest && err == nil {
					return nil
				}
				if err == nil || !strings.Contains(strings.ToLower(err.Error()), "no such file") {
					return fmt.Errorf("want the cause, got %v", err)
				}
				return nil
			})
			add(name+": attach", func(s *server) error { return s.attach(s, transport, protocol) })
			if protocol >= "v3" {
				add(name+": a terminal and its sizes", func(s *server) error { return terminal(s, transport, protocol) })
			}
			add(name+": a client that vanishes", func(s *server) error { return vanish(s, transport, protocol) })
		}
	}
	add("spdy: the versions that client-go offers", func(s *server) error {
		address, err := s.url(request{Exec: []string{"true"}, Stdout: true})
		if err != nil {
			return err
		}
		parsed, _ := url.Parse(address)
		executor, err := remotecommand.NewSPDYExecutor(config(), "POST", parsed)
		if err != nil {
			return err
		}
		return executor.StreamWithContext(context.Background(), remotecommand.StreamOptions{Stdout: io.Discard})
	})
	for _, protocol := range append([]string{""}, versions...) {
		for _, text := range []bool{false, true} {
			if protocol == "" && text {
				continue
			}
			protocol := protocol
			if text {
				protocol = strings.Replace(protocol, "channel", "base64.channel", 1)
			}
			add(fmt.Sprintf("websocket channels by hand, protocol %q", protocol), func(s *server) error { return channels(s, protocol, text) })
		}
	}
	add("a token is good once", func(s *server) error {
		address, err := s.url(request{Exec: []string{"true"}, Stdout: true})
		if err != nil {
			return err
		}
		for _, want := range []int{400, 404} {
			client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
			answer, err := client.Get(address)
			if err != nil {
				return err
			}
			answer.Body.Close()
			if answer.StatusCode != want {
				return fmt.Errorf("want %d, got %s", want, answer.Status)
			}
		}
		return nil
	})
	add("a protocol that is not spoken", func(s *server) error {
		err := stream(s, "spdy", "v9.channel.k8s.io", request{Exec: []string{"true"}}, remotecommand.StreamOptions{Stdout: io.Discard})
		if err == nil {
			return fmt.Errorf("it was accepted")
		}
		return nil
	})
	return tests
}

// terminal has two sizes, and its stdin is echoed.
func terminal(s *server, transport, protocol string) error {
	queue, out := make(sizes, 1), new(bytes.Buffer)
	queue <- remotecommand.TerminalSize{Width: 80, Height: 24}
	input, feed := io.Pipe()
	go func() {
		time.Sleep(300 * time.Millisecond)
		queue <- remotecommand.TerminalSize{Width: 132, Height: 50}
		time.Sleep(300 * time.Millisecond)
		feed.Write([]byte("go\n"))
	}()
	err := stream(s, transport, protocol, request{Exec: []string{"sh", "-c", "sleep 0.2; stty size; read x; stty size; tty; exit 3"}},
		remotecommand.StreamOptions{Stdin: input, Stdout: out, Tty: true, TerminalSizeQueue: queue})
	close(queue)
	lines := strings.Fields(out.String())
	if len(lines) != 6 || strings.Join(lines[:5], " ") != "24 80 go 50 132" || !strings.HasPrefix(lines[5], "/dev/pts/") {
		return fmt.Errorf("the terminal shows %q", out.String())
	}
	return exitCode(protocol, err)
}

// vanish leaves in the middle: the process's stdin ends and its output breaks.
func vanish(s *server, transport, protocol string) error {
	dir, err := os.MkdirTemp("", "vanish")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ctx, leave := context.WithCancel(context.Background())
	input, feed := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- streamContext(ctx, s, transport, protocol, request{Exec: []string{"sh", "-c", "echo up; cat >/dev/null; touch " + dir + "/ended"}},
			remotecommand.StreamOptions{Stdin: input, Stdout: writer(func([]byte) { leave() })})
	}()
	<-ended
	feed.Close()
	for range 100 {
		if _, err := os.Stat(filepath.Join(dir, "ended")); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("its stdin did not end")
}

type writer func([]byte)

func (w writer) Write(bytes []byte) (int, error) {
	w(bytes)
	return len(bytes), nil
}

// dial opens a WebSocket by hand.
func dial(address, protocol string) (*gorilla.Conn, error) {
	dialer := gorilla.Dialer{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	if protocol != "" {
		dialer.Subprotocols = []string{protocol}
	}
	connection, _, err := dialer.Dial(strings.Replace(address, "http", "ws", 1), nil)
	if err == nil && connection.Subprotocol() != protocol {
		err = fmt.Errorf("protocol %q was agreed on", connection.Subprotocol())
	}
	return connection, err
}

// receive reads a message and takes its channel off.
func receive(connection *gorilla.Conn, text bool) (int, []byte, error) {
	kind, message, err := connection.ReadMessage()
	if err != nil {
		return 0, nil, err
	}
	if len(message) == 0 {
		return 0, nil, fmt.Errorf("a message without a channel")
	}
	if !text {
		return int(message[0]), message[1:], nil
	}
	if kind != gorilla.TextMessage {
		return 0, nil, fmt.Errorf("base64 in a message of kind %d", kind)
	}
	decoded, err := base64.StdEncoding.DecodeString(string(message[1:]))
	return int(message[0] - '0'), decoded, err
}

// send is the other way.
func send(connection *gorilla.Conn, text bool, channel byte, payload string) error {
	if text {
		return connection.WriteMessage(gorilla.TextMessage, []byte(string('0'+channel)+base64.StdEncoding.EncodeToString([]byte(payload))))
	}
	return connection.WriteMessage(gorilla.BinaryMessage, append([]byte{channel}, payload...))
}

// channels has a conversation as browsers and other languages' clients have it.
func channels(s *server, protocol string, text bool) error {
	address, err := s.url(request{Exec: []string{"sh", "-c", "head -c5; echo bad >&2; exit 3"}, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		return err
	}
	connection, err := dial(address, protocol)
	if err != nil {
		return err
	}
	defer connection.Close()
	channel, first, err := receive(connection, text)
	if err != nil || channel != 1 || len(first) != 0 {
		return fmt.Errorf("first message: channel %d, %q, %v", channel, first, err)
	}
	if err := connection.WriteControl(gorilla.PingMessage, []byte("are you there"), time.Now().Add(time.Second)); err != nil {
		return err
	}
	pong := false
	connection.SetPongHandler(func(data string) error { pong = data == "are you there"; return nil })
	send(connection, text, 0, "he")
	send(connection, text, 0, "llo")
	got := map[int]string{}
	for {
		channel, payload, err := receive(connection, text)
		if gorilla.IsCloseError(err, gorilla.CloseNormalClosure) {
			break
		}
		if err != nil {
			return err
		}
		got[channel] += string(payload)
	}
	status := `"reason":"ExitCode"`
	if protocol < "v4" {
		status = "exit code: 3"
	}
	if got[1] != "hello" || got[2] != "bad\n" || !strings.Contains(got[3], status) || !pong {
		return fmt.Errorf("got %v, pong %t", got, pong)
	}
	return nil
}
