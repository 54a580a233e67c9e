// nri-plugin [-idx NN] [-name NAME] [-socket PATH] [-config JSON]: an NRI plugin that notes what it is told and answers
// what its configuration says. One that the runtime starts has index, name and configuration from there. At SIGUSR1 it
// asks for `unsolicited`.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"google.golang.org/protobuf/encoding/protojson"
)

type configuration struct {
	Log         string            // the file where it notes what it is told
	Only        string            // adjusts, fails, hangs and rejects only for containers of that name, if given
	Adjust      json.RawMessage   // of every container that is made
	Update      []json.RawMessage // when a container's limits change
	Stop        []json.RawMessage // when a container stops
	Unsolicited []json.RawMessage // at SIGUSR1
	Fail, Hang  []string          // methods
	Reject      string            // why it rejects adjustments
}

type plugin struct {
	configuration
	stub stub.Stub
}

func (p *plugin) read(text string) error {
	if text == "" {
		return nil
	}
	return json.Unmarshal([]byte(text), &p.configuration)
}

func (p *plugin) note(format string, values ...any) {
	file, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		fmt.Fprintf(file, format+"\n", values...)
		file.Close()
	}
}

func (p *plugin) told(method string, pod *api.PodSandbox, container *api.Container) error {
	p.note("%s %s %s", method, pod.GetName(), container.GetName())
	if p.Only != "" && container.GetName() != p.Only {
		return nil
	}
	if slices.Contains(p.Hang, method) {
		select {}
	}
	if slices.Contains(p.Fail, method) {
		return errors.New("told to fail")
	}
	return nil
}

// updates makes `$ID` the id of container, and the empty id too.
func updates(texts []json.RawMessage, container *api.Container) ([]*api.ContainerUpdate, error) {
	var list []*api.ContainerUpdate
	for _, text := range texts {
		update := &api.ContainerUpdate{}
		if err := protojson.Unmarshal([]byte(text), update); err != nil {
			return nil, err
		}
		if update.ContainerId == "" {
			update.ContainerId = container.GetId()
		}
		list = append(list, update)
	}
	return list, nil
}

func (p *plugin) Configure(_ context.Context, config, runtime, version string) (api.EventMask, error) {
	if err := p.read(config); err != nil {
		return 0, err
	}
	p.note("Configure %s", runtime)
	return 0, nil
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	var names []string
	for _, pod := range pods {
		names = append(names, pod.GetName())
	}
	for _, container := range containers {
		names = append(names, container.GetName())
	}
	slices.Sort(names)
	p.note("Synchronize %s", strings.Join(names, " "))
	return nil, nil
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.told("RunPodSandbox", pod, nil)
}

func (p *plugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, _, _ *api.LinuxResources) error {
	return p.told("UpdatePodSandbox", pod, nil)
}

func (p *plugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.told("PostUpdatePodSandbox", pod, nil)
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.told("StopPodSandbox", pod, nil)
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.told("RemovePodSandbox", pod, nil)
}

func (p *plugin) CreateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if err := p.told("CreateContainer", pod, container); err != nil {
		return nil, nil, err
	}
	adjust := &api.ContainerAdjustment{}
	if p.Adjust != nil && (p.Only == "" || p.Only == container.GetName()) {
		if err := protojson.Unmarshal([]byte(p.Adjust), adjust); err != nil {
			return nil, nil, err
		}
	}
	return adjust, nil, nil
}

func (p *plugin) ValidateContainerAdjustment(_ context.Context, request *api.ValidateContainerAdjustmentRequest) error {
	owners, _ := request.GetOwners().EnvOwner(request.GetContainer().GetId(), "FROM_NRI")
	p.note("ValidateContainerAdjustment FROM_NRI is of %q", owners)
	if p.Reject != "" && (p.Only == "" || p.Only == request.GetContainer().GetName()) {
		return errors.New(p.Reject)
	}
	return nil
}

func (p *plugin) PostCreateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.told("PostCreateContainer", pod, container)
}

func (p *plugin) StartContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.told("StartContainer", pod, container)
}

func (p *plugin) PostStartContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.told("PostStartContainer", pod, container)
}

func (p *plugin) UpdateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container, resources *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	if err := p.told("UpdateContainer", pod, container); err != nil {
		return nil, err
	}
	p.note("memory %d", resources.GetMemory().GetLimit().GetValue())
	return updates(p.Update, container)
}

func (p *plugin) PostUpdateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.told("PostUpdateContainer", pod, container)
}

func (p *plugin) StopContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) ([]*api.ContainerUpdate, error) {
	if err := p.told("StopContainer", pod, container); err != nil {
		return nil, err
	}
	return updates(p.Stop, container)
}

func (p *plugin) RemoveContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.told("RemoveContainer", pod, container)
}

func (p *plugin) ask() {
	wanted, err := updates(p.Unsolicited, nil)
	if err == nil {
		var failed []*api.ContainerUpdate
		failed, err = p.stub.UpdateContainers(wanted)
		p.note("UpdateContainers failed %d %v", len(failed), err)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func main() {
	index, name := flag.String("idx", "", ""), flag.String("name", "", "")
	socket, config := flag.String("socket", "", ""), flag.String("config", "", "")
	flag.Parse()
	p := &plugin{}
	err := p.read(*config)
	var options []stub.Option
	if *index != "" {
		options = append(options, stub.WithPluginIdx(*index), stub.WithPluginName(*name), stub.WithSocketPath(*socket))
	}
	if err == nil {
		p.stub, err = stub.New(p, options...)
	}
	if err == nil {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGUSR1)
		go func() {
			for range signals {
				p.ask()
			}
		}()
		err = p.stub.Run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
