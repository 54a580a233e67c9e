# What people and CI call. Each target installs what it needs with apt-get (scripts/setup says
# what and why first) and is silent about what is there already.
PREFIX  ?= /usr/local
DESTDIR ?=
CC      ?= cc
CARGO   ?= $(shell scripts/setup --cargo)
export CARGO CC

# rrun and the pod monitor are linked static and at a fixed address: that starts in a fraction of the time a dynamic
# program takes, and with a C library that starts faster (scripts/libc). A target folder of its own keeps these flags from
# rebuilding everything else.
STATIC = scripts/libc target/libc && CARGO_TARGET_DIR=target/static \
	RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static -L native=target/libc" \
	LIBSECCOMP_LINK_TYPE=static LIBSECCOMP_LIB_PATH="$$(dirname "$$($(CC) -print-file-name=libseccomp.a)")" \
	RRUN_COMMIT="$$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)"
HOST = $$($(CARGO) -vV | sed -n 's/^host: //p')

.NOTPARALLEL:
.PHONY: all build build-map run test check bench bench-cri bench-streams bench-images integration engines suites suites-guest clients install clean FORCE

all: build

# The release binaries, in bin/.
build: setup-build
	$(STATIC) $(CARGO) build --release --locked --package rrun --package rrun-monitor --target "$(HOST)"
	$(CARGO) build --profile daemon --locked --package rrun-cri
	@scripts/place "target/static/$(HOST)/release/rrun" "target/static/$(HOST)/release/rrun-monitor" target/daemon/rrun-cri

# rrun alone, with a map of its parts beside it: for bench/hot.
build-map: setup-build
	$(STATIC) $(CARGO) rustc --release --locked --package rrun --bin rrun --target "$(HOST)" -- -C link-arg=-Wl,-Map=$(CURDIR)/target/static/rrun.map

# A first container: no network, no image.
run: setup-run build
	@demo/run

# Everything that can be tested here; what was left out is listed at the end.
test: setup-test build
	@scripts/test

# Format, lints, documentation, licences, and how the programs are linked.
check: setup-check build
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" $(CARGO) doc --workspace --no-deps --document-private-items --locked
	@scripts/check

# rrun against its peers and the floor, interleaved; as root. It writes docs/performance.md and .svg.
bench: setup-bench build
	@bench/run

# rrun-cri against containerd: pods, exec probes, memory; then 500 pods. As root.
bench-cri: setup-clients build
	$(CARGO) build --profile daemon --locked --package tests --example cri-bench
	@integration/bench-cri.sh

# The same two: exec's latency, bytes through exec and port-forward. It writes its table in docs/performance.md.
bench-streams: setup-clients build
	@UPDATE=1 integration/bench-streams.sh

# Pulls of rrun-cri against containerd's; as root. It writes its table into docs/performance.md.
bench-images: setup-clients build
	@integration/bench-images.sh

# containerd, Docker, Compose and Podman on this runtime, in Debian 12's versions and in sid's; crictl, critest, kubectl's
# libraries and a kubelet on rrun-cri.
integration: setup-integration build
	@integration/all.sh

# The engines alone, in Debian 12's versions. CURRENT=sid or trixie: that release's as well.
engines: setup-integration build
	@integration/all.sh engines

# runc's own suite and runtime-tools' validation; as root, a quarter of an hour. SUITES=quick: without the files of runc's that take minutes
# or whose own set-up fails at times.
suites: setup-suites build
	@integration/runtime-tools.sh
	@WITHOUT="$(if $(filter quick,$(SUITES)),checkpoint events mounts_propagation_unsafe)" integration/runc-bats.sh

# runc's own suite in a guest machine with cgroup v2 (../shared/vm/run-in-vm), with each driver of cgroups; as root, an hour or
# more for each. What was seen to its end is not run again. FILES: these .bats files alone.
suites-guest: setup-suites build
	@integration/suites-guest.sh $(FILES)

# Those of rrun-cri alone, which CI runs.
clients: setup-clients build
	@integration/all.sh crictl critest kubelet nri checkpoint streams collector cri-runc

# Binaries, man pages and shell completions; it builds nothing, so that `sudo make install` is enough.
install:
	@[ -x bin/rrun ] || { echo "make install: no bin/rrun; run make build first" >&2; exit 1; }
	@scripts/install "$(DESTDIR)" "$(PREFIX)"

clean:
	rm -rf target bin

setup-%: FORCE
	@scripts/setup $*
