package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ids of what a CRI server has: a container that runs `cat` with its stdin open and sees the folder for temporary files, a
// pod of the host's network, and a pod with a network of its own that serves a page with "Welcome" in it at a port.
type ids struct{ container, pod, web string }

// connectCRI asks a CRI server for URLs.
func connectCRI(socket string, ids ids) (*server, error) {
	connection, err := grpc.NewClient("unix://"+strings.TrimPrefix(socket, "unix://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	client := cri.NewRuntimeServiceClient(connection)
	ask := func(r request) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		switch {
		case len(r.Exec) > 0:
			answer, err := client.Exec(ctx, &cri.ExecRequest{ContainerId: ids.container, Cmd: r.Exec, Tty: r.TTY, Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr})
			return answer.GetUrl(), err
		case r.Attach != "":
			answer, err := client.Attach(ctx, &cri.AttachRequest{ContainerId: ids.container, Tty: r.TTY, Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr})
			return answer.GetUrl(), err
		}
		pod, ports := ids.pod, []int32{}
		if r.Pod != "" {
			pod = r.Pod
		}
		for _, port := range r.Ports {
			ports = append(ports, int32(port))
		}
		answer, err := client.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: pod, Port: ports})
		return answer.GetUrl(), err
	}
	return &server{url: ask, attach: attachCRI, end: func() { connection.Close() }}, nil
}

// attachCRI types a line and sees it come back; the container's own end is not awaited.
func attachCRI(s *server, transport, protocol string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	line, seen := transport+" "+protocol+"\n", ""
	input, feed := io.Pipe()
	defer feed.Close()
	go io.WriteString(feed, line)
	err := streamContext(ctx, s, transport, protocol, request{Attach: "the container"}, remotecommand.StreamOptions{Stdin: input, Stdout: writer(func(data []byte) {
		if seen += string(data); strings.HasSuffix(seen, "\n") {
			cancel()
		}
	})})
	if seen != line {
		return fmt.Errorf("wanted %q, got %q, %v", line, seen, err)
	}
	return nil
}

// web is a pod's page, through port-forward into the pod's own network.
func web(ids ids) []test {
	pod, number, _ := strings.Cut(ids.web, ":")
	port, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return nil
	}
	var tests []test
	for _, transport := range []string{"spdy", "tunnel"} {
		tests = append(tests, test{"port-forward over " + transport + ": twenty times a page of a pod", func(s *server) error {
			forwarder := *s
			forwarder.url = func(r request) (string, error) { r.Pod = pod; return s.url(r) }
			address, leave, err := forward(&forwarder, transport, uint16(port))
			if err != nil {
				return err
			}
			defer leave()
			location := (&url.URL{Scheme: "http", Host: address}).String()
			for range 20 {
				answer, err := http.Get(location)
				if err != nil {
					return err
				}
				page, err := io.ReadAll(answer.Body)
				answer.Body.Close()
				if !strings.Contains(string(page), "Welcome") {
					return errors.Join(err, fmt.Errorf("the page is %q", page))
				}
			}
			return nil
		}})
	}
	return tests
}
