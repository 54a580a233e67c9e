// otelcol: an OpenTelemetry Collector with what a node's agent uses for container logs and traces: the file log receiver
// with its container parser, and the OTLP receiver. It writes what it got to stdout, a line of OTLP's JSON per batch.
//
//	otelcol --config FILE
package main

import (
	"context"
	"fmt"
	"os"
	"sync"

	"github.com/open-telemetry/opentelemetry-collector-contrib/receiver/filelogreceiver"
	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/confmap/provider/fileprovider"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/otelcol"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/receiver"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/service/telemetry/otelconftelemetry"
)

// stdout is the exporter.
type stdout struct {
	component.StartFunc
	component.ShutdownFunc
}

var mutex sync.Mutex

func line(text []byte, err error) error {
	mutex.Lock()
	defer mutex.Unlock()
	if err == nil {
		_, err = os.Stdout.Write(append(text, '\n'))
	}
	return err
}

func (stdout) Capabilities() consumer.Capabilities { return consumer.Capabilities{} }
func (stdout) ConsumeLogs(_ context.Context, logs plog.Logs) error {
	return line((&plog.JSONMarshaler{}).MarshalLogs(logs))
}
func (stdout) ConsumeTraces(_ context.Context, traces ptrace.Traces) error {
	return line((&ptrace.JSONMarshaler{}).MarshalTraces(traces))
}

func logs(context.Context, exporter.Settings, component.Config) (exporter.Logs, error) {
	return stdout{}, nil
}

func traces(context.Context, exporter.Settings, component.Config) (exporter.Traces, error) {
	return stdout{}, nil
}

func factories() (all otelcol.Factories, err error) {
	all.Telemetry = otelconftelemetry.NewFactory()
	if all.Receivers, err = otelcol.MakeFactoryMap[receiver.Factory](filelogreceiver.NewFactory(), otlpreceiver.NewFactory()); err != nil {
		return all, err
	}
	all.Exporters, err = otelcol.MakeFactoryMap[exporter.Factory](exporter.NewFactory(component.MustNewType("stdout"),
		func() component.Config { return &struct{}{} },
		exporter.WithLogs(logs, component.StabilityLevelStable), exporter.WithTraces(traces, component.StabilityLevelStable)))
	return all, err
}

func main() {
	command := otelcol.NewCommand(otelcol.CollectorSettings{
		BuildInfo: component.BuildInfo{Command: "otelcol", Description: "logs and traces of a node", Version: "0"},
		Factories: factories,
		ConfigProviderSettings: otelcol.ConfigProviderSettings{ResolverSettings: confmap.ResolverSettings{
			DefaultScheme: "file", ProviderFactories: []confmap.ProviderFactory{fileprovider.NewFactory()},
		}},
	})
	if err := command.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
