// streams SOCKET CONTAINER POD PORT: exec, attach and port-forward with the libraries behind kubectl, in every
// protocol version of both transports. A line PASS or FAIL for each case, FAIL with the reason below.
//
// The container runs `cat` with its stdin open; the pod serves a page with "Welcome" in it at PORT.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	client "k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
)

var (
	server cri.RuntimeServiceClient
	config = &rest.Config{}
	failed bool
)

// Newest first, as a client offers them. SPDY's client also speaks the newest, which servers do not.
var protocols = append([]string{remotecommand.StreamProtocolV5Name}, remotecommand.SupportedStreamingProtocols...)

func check(name string, err error) {
	if err == nil {
		fmt.Println("PASS", name)
		return
	}
	failed = true
	fmt.Printf("FAIL %s\n     %s\n", name, strings.ReplaceAll(err.Error(), "\n", "\n     "))
}

func executor(transport, protocol, address string) (client.Executor, error) {
	if transport == "WebSocket" {
		return client.NewWebSocketExecutorForProtocols(config, "GET", address, protocol)
	}
	parsed, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	round, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	return client.NewSPDYExecutorForProtocols(round, upgrader, "POST", parsed, protocol)
}

// stream asks for the address and streams for at most half a minute.
func stream(transport, protocol string, ask func(context.Context) (string, error), options client.StreamOptions) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	address, err := ask(ctx)
	if err != nil {
		return err
	}
	run, err := executor(transport, protocol, address)
	if err != nil {
		return err
	}
	return run.StreamWithContext(ctx, options)
}

func execIn(container string, options client.StreamOptions, command ...string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		answer, err := server.Exec(ctx, &cri.ExecRequest{ContainerId: container, Cmd: command, Tty: options.Tty,
			Stdin: options.Stdin != nil, Stdout: options.Stdout != nil, Stderr: options.Stderr != nil})
		return answer.GetUrl(), err
	}
}

func is(got, wanted string) error {
	if got != wanted {
		return fmt.Errorf("wanted %q, got %q", wanted, got)
	}
	return nil
}

// sizes gives a terminal's sizes, one after the other.
type sizes chan client.TerminalSize

func (s sizes) Next() *client.TerminalSize {
	size, more := <-s
	if !more {
		return nil
	}
	return &size
}

func cases(transport, protocol, container string) {
	name := transport + " " + protocol + ": "
	version, _ := strconv.Atoi(strings.TrimPrefix(strings.TrimSuffix(protocol, ".channel.k8s.io"), "v")) // v1 has no number

	var out, errs bytes.Buffer
	options := client.StreamOptions{Stdout: &out, Stderr: &errs}
	err := stream(transport, protocol, execIn(container, options, "sh", "-c", "echo out; echo errs >&2"), options)
	check(name+"both outputs", errors.Join(err, is(out.String(), "out\n"), is(errs.String(), "errs\n")))

	out.Reset()
	err = stream(transport, protocol, execIn(container, options, "sh", "-c", "exit 7"), options)
	var code exec.CodeExitError
	if err == nil {
		err = errors.New("the exit status is lost")
	} else if version < 4 || errors.As(err, &code) && code.Code == 7 { // older ones have words only
		err = nil
	}
	check(name+"exit status", err)

	// The end of stdin is told by SPDY since its second version, by WebSocket since its fifth.
	out.Reset()
	options = client.StreamOptions{Stdin: strings.NewReader("typed\n"), Stdout: &out}
	command := []string{"head", "-n", "1"}
	if transport == "SPDY" && version >= 2 || version >= 5 {
		command = []string{"cat"}
	}
	err = stream(transport, protocol, execIn(container, options, command...), options)
	check(name+"stdin", errors.Join(err, is(out.String(), "typed\n")))

	const size = 8 << 20
	out.Reset()
	options = client.StreamOptions{Stdout: &out}
	err = stream(transport, protocol, execIn(container, options, "head", "-c", strconv.Itoa(size), "/dev/zero"), options)
	check(name+"eight megabytes", errors.Join(err, is(strconv.Itoa(out.Len()), strconv.Itoa(size))))

	if version >= 3 { // the first with sizes
		out.Reset()
		queue := make(sizes, 1)
		queue <- client.TerminalSize{Width: 99, Height: 33}
		reader, writer := io.Pipe()
		options = client.StreamOptions{Stdin: reader, Stdout: &out, Tty: true, TerminalSizeQueue: queue}
		err = stream(transport, protocol, execIn(container, options, "sh", "-c",
			"until [ \"$(stty size 2>/dev/null)\" = '33 99' ]; do sleep 0.1; done; echo resized"), options)
		writer.Close()
		close(queue)
		check(name+"terminal and its size", errors.Join(err, is(strings.TrimSpace(out.String()), "resized")))
	}

	check(name+"attach", attach(transport, protocol, container))
}

// attach types a line and sees it come back; the container's own end is not awaited.
func attach(transport, protocol, container string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	answer, err := server.Attach(ctx, &cri.AttachRequest{ContainerId: container, Stdin: true, Stdout: true})
	if err != nil {
		return err
	}
	run, err := executor(transport, protocol, answer.GetUrl())
	if err != nil {
		return err
	}
	line, seen := transport+" "+protocol+"\n", ""
	reader, writer := io.Pipe()
	defer writer.Close()
	go writer.Write([]byte(line))
	err = run.StreamWithContext(ctx, client.StreamOptions{Stdin: reader, Stdout: writerFunc(func(data []byte) {
		if seen += string(data); strings.HasSuffix(seen, "\n") {
			cancel()
		}
	})})
	if seen == line {
		return nil
	}
	return errors.Join(err, is(seen, line))
}

type writerFunc func([]byte)

func (f writerFunc) Write(data []byte) (int, error) { f(data); return len(data), nil }

func forward(transport, pod, port string) error {
	answer, err := server.PortForward(context.Background(), &cri.PortForwardRequest{PodSandboxId: pod})
	if err != nil {
		return err
	}
	address, err := url.Parse(answer.GetUrl())
	if err != nil {
		return err
	}
	var dialer httpstream.Dialer
	if transport == "WebSocket" {
		dialer, err = portforward.NewSPDYOverWebsocketDialerForStreaming(address, config)
	} else {
		var round http.RoundTripper
		var upgrader spdy.Upgrader
		if round, upgrader, err = spdy.RoundTripperFor(config); err == nil {
			dialer = spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: round}, "POST", address)
		}
	}
	if err != nil {
		return err
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	defer close(stop)
	forwarder, err := portforward.NewForStreaming(dialer, []string{"0:" + port, "0:1"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- forwarder.ForwardPorts() }()
	select {
	case err := <-ended:
		return err
	case <-time.After(30 * time.Second):
		return errors.New("it is not ready after 30 seconds")
	case <-ready:
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		return err
	}
	get := func(port uint16) (string, error) {
		answer, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d", port))
		if err != nil {
			return "", err
		}
		defer answer.Body.Close()
		page, err := io.ReadAll(answer.Body)
		return string(page), err
	}
	for range 20 {
		page, err := get(ports[0].Local)
		if err != nil {
			return err
		}
		if !strings.Contains(page, "Welcome") {
			return fmt.Errorf("the page is %q", page)
		}
	}
	// This client gives all up at the first port that nobody listens at: so it comes last.
	if page, err := get(ports[1].Local); err == nil {
		return fmt.Errorf("port 1 answered %q", page)
	}
	return nil
}

func main() {
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "streams SOCKET CONTAINER POD PORT")
		os.Exit(2)
	}
	connection, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	server = cri.NewRuntimeServiceClient(connection)
	for _, protocol := range protocols {
		if protocol != remotecommand.StreamProtocolV5Name {
			cases("SPDY", protocol, os.Args[2])
		}
		cases("WebSocket", protocol, os.Args[2])
	}
	check("SPDY: port-forward", forward("SPDY", os.Args[3], os.Args[4]))
	check("WebSocket: port-forward", forward("WebSocket", os.Args[3], os.Args[4]))
	if failed {
		os.Exit(1)
	}
}
