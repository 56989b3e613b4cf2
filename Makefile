# Every target is one bash script, so a recipe reads as it runs.
.ONESHELL:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.NOTPARALLEL:

MODULE   := github.com/underlay-cni/underlay
PROGRAMS := ./plugins/... ./ipam/plugin/cmd/... ./pkg/cli/cmd/... ./pkg/agent/cmd/...
BIN      ?= bin
# Build tags: TAGS=faultpoint puts the fault points of pkg/fault in.
TAGS     ?=
# RACE=1 builds with the race detector, which needs a C compiler.
RACE     ?=

# Where `make install` puts things. PREFIX goes before the names that the
# reference plugins have too: PREFIX=underlay- keeps both.
BINDIR  ?= /opt/cni/bin
SBINDIR ?= /usr/local/sbin
PREFIX  ?=
INSTALL := \
	$(foreach p,$(notdir $(wildcard plugins/*)),$(p):$(BINDIR)/$(PREFIX)$(p)) \
	underlay:$(BINDIR)/underlay \
	underlayctl:$(SBINDIR)/underlayctl \
	underlayd:$(SBINDIR)/underlayd

# go build stops where git refuses to read the repository (another user's
# checkout, say). Then the binaries go without a version.
VCS = $(shell git status >/dev/null 2>&1 || echo -buildvcs=false)

# A plugin runs for milliseconds, most of them in the kernel and on the disk.
# Inlining its own functions, or those of what it is made of, makes it larger
# and no faster.
SMALL := $(foreach p,$(MODULE) go.etcd.io/bbolt github.com/containernetworking github.com/vishvananda golang.org/x/sys time regexp encoding os/exec,-gcflags='$(p)/...=-l')

section = printf '\n== %s ==\n' "$(1)"

.PHONY: help
help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

.PHONY: build
build: ## build static, stripped binaries into bin/ (GOARCH=arm64 works)
	@CGO_ENABLED=$(if $(RACE),1,0) go build $(VCS) $(if $(RACE),-race) -tags '$(TAGS)' -trimpath -ldflags '-s -w' $(SMALL) -o $(BIN)/ $(PROGRAMS)

# Whoever installs may have no Go: then what is built is installed as it is.
.PHONY: current
current:
	@if command -v go >/dev/null; then
		$(MAKE) build
	elif [ ! -d $(BIN) ]; then
		echo "$(BIN) is not there, and there is no Go to build it with" >&2
		exit 1
	fi

# A binary is ours if its build info names a program of this module, which can
# be read without Go.
define is_ours
is_ours() { LC_ALL=C grep -qaF "path$$(printf '\t')$(MODULE)/" "$$1"; }
endef

.PHONY: install
install: current ## install (BINDIR, SBINDIR, PREFIX=underlay-, DESTDIR, FORCE=1)
	@$(is_ours)
	for i in $(INSTALL); do
		to=$(DESTDIR)$${i#*:}
		if [ -e "$$to" ] && ! is_ours "$$to" && [ "$(FORCE)" != 1 ]; then
			echo "$$to is not one of ours, so nothing was installed. PREFIX=underlay- installs beside it; FORCE=1 replaces it and keeps it as $$to.orig" >&2
			exit 1
		fi
	done
	for i in $(INSTALL); do
		to=$(DESTDIR)$${i#*:}
		if [ -e "$$to" ] && ! is_ours "$$to"; then
			cp -p "$$to" "$$to.orig"
		fi
		# A rename, since a runtime may call the plugin at this very moment.
		install -D -m 0755 $(BIN)/$${i%%:*} "$$to.new"
		mv -f "$$to.new" "$$to"
		echo "installed $$to"
	done

.PHONY: uninstall
uninstall: ## remove what install put there, and put back what it replaced
	@$(is_ours)
	for i in $(INSTALL); do
		to=$(DESTDIR)$${i#*:}
		if [ -e "$$to" ] && ! is_ours "$$to"; then
			echo "left $$to, which is not one of ours"
			continue
		fi
		if [ -e "$$to" ]; then
			rm "$$to"
			echo "removed $$to"
		fi
		if [ -e "$$to.orig" ]; then
			mv "$$to.orig" "$$to"
			echo "put $$to back"
		fi
	done

# v1.2.3-4-gabcdef is 1.2.3+4.gabcdef, which comes after 1.2.3; v1.2.3-rc1 is
# 1.2.3~rc1, which comes before it.
VERSION ?= $(or $(shell git describe --tags --match 'v[0-9]*' 2>/dev/null | sed 's/^v//; s/-\(alpha\|beta\|rc\)/~\1/; s/-/+/; s/-/./g'),0.0.0)
MAINTAINER ?= underlay maintainers <underlay-cni@users.noreply.github.com>

# Debian keeps plugins in /usr/lib/cni, where containernetworking-plugins has a
# macvlan and an ipvlan: with the prefix both packages go together. /opt is not
# for packages. Samples say the names that the package has.
.PHONY: deb
deb: current ## a Debian package in bin/ (GOARCH=arm64, VERSION=1.2.3)
	@stage=$$(mktemp -d)
	trap 'rm -rf "$$stage"' EXIT
	# What was built tells the architecture, whoever built it.
	case $$(od -An -tx1 -j18 -N1 $(BIN)/underlayd | tr -d ' ') in
	3e) architecture=amd64 ;;
	b7) architecture=arm64 ;;
	*) echo "$(BIN)/underlayd is for neither amd64 nor arm64" >&2; exit 1 ;;
	esac
	umask 022
	chmod 0755 "$$stage"
	for i in $(notdir $(wildcard plugins/*)); do
		install -D -m 0755 "$(BIN)/$$i" "$$stage/usr/lib/cni/underlay-$$i"
	done
	install -D -m 0755 $(BIN)/underlay "$$stage/usr/lib/cni/underlay"
	install -D -m 0755 $(BIN)/underlayctl "$$stage/usr/bin/underlayctl"
	install -D -m 0755 $(BIN)/underlayd "$$stage/usr/sbin/underlayd"
	unit=$$stage/usr/lib/systemd/system/underlayd.service
	install -D -m 0644 conf/systemd/underlayd.service "$$unit"
	# Without the comment on how to install it.
	sed -i -e '1,/^$$/d' -e 's|/usr/local/sbin/|/usr/sbin/|' "$$unit"
	doc=$$stage/usr/share/doc/underlay
	install -D -m 0644 conf/debian/copyright "$$doc/copyright"
	install -m 0644 README.md "$$doc/"
	cp -r --no-preserve=mode,ownership conf "$$doc/examples"
	rm -r "$$doc/examples/debian" "$$doc/examples/systemd"
	grep -rlE '"type": *"($(subst $() ,|,$(notdir $(wildcard plugins/*))))"' "$$doc/examples" |
		xargs sed -i -E 's/("type": *")($(subst $() ,|,$(notdir $(wildcard plugins/*))))"/\1underlay-\2"/g'
	export SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || date +%s)}
	printf 'underlay (%s) unstable; urgency=medium\n\n  * The changes are in the history of the source.\n\n -- %s  %s\n' \
		'$(VERSION)' '$(MAINTAINER)' "$$(LC_ALL=C date -Rud "@$$SOURCE_DATE_EPOCH")" | gzip -9n > "$$doc/changelog.gz"
	install -d "$$stage/DEBIAN"
	install -m 0755 conf/debian/postinst conf/debian/prerm conf/debian/postrm "$$stage/DEBIAN/"
	(cd "$$stage" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum > DEBIAN/md5sums)
	sed -e 's|@VERSION@|$(VERSION)|' -e 's|@MAINTAINER@|$(MAINTAINER)|' -e "s|@ARCHITECTURE@|$$architecture|" \
		-e "s|@SIZE@|$$(du -sk "$$stage/usr" | cut -f1)|" conf/debian/control > "$$stage/DEBIAN/control"
	package=$(DESTDIR)$(if $(DESTDIR),/,$(BIN)/)underlay_$(VERSION)_$$architecture.deb
	dpkg-deb --root-owner-group -Zzstd --build "$$stage" "$$package" >/dev/null
	echo "built $$package"

# Debian packages that a target needs; those that are there are left alone.
.PHONY: packages
packages:
	@missing=()
	for p in $(PACKAGES); do
		[ "$$(dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null)" = installed ] || missing+=($$p)
	done
	if [ $${#missing[@]} = 0 ]; then
		exit 0
	fi
	$(call section,install $${missing[*]})
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 $${missing[@]}
	# The tests start daemons of their own; Debian's would stay behind.
	for daemon in containerd:containerd etcd-server:etcd; do
		if [[ " $${missing[*]} " == *" $${daemon%:*} "* ]]; then
			systemctl disable --now $${daemon#*:} 2>/dev/null || true
		fi
	done

.PHONY: root
root:
	@if [ "$$(id -u)" != 0 ]; then
		echo "this needs root: it makes network namespaces" >&2
		exit 1
	fi

.PHONY: demo
demo: PACKAGES := ca-certificates iproute2 iputils-ping
demo: root packages build ## three hosts with one pool, on network namespaces; agents die (KEEP=1 leaves it up)
	@go run ./e2e/demo -bin $(BIN)

.PHONY: demo-clean
demo-clean: root ## remove what `make demo KEEP=1` left up
	@go run ./e2e/demo -remove

# What it takes to boot a kernel that has everything, as a process.
GUEST := user-mode-linux kmod iptables

.PHONY: test
test: PACKAGES := ca-certificates curl procps gcc libc6-dev iproute2 iputils-ping nftables busybox-static containerd runc etcd-server iperf3 $(GUEST)
test: root packages lint test-rooms test-whole test-guest conformance ## everything but the benchmarks; sets a fresh Debian machine up by itself

.PHONY: test-rooms
test-rooms: root ## tests of each package: plain, in namespaces, and of the real binary by script
	@$(call section,unit and netns and script tests)
	go test -race -timeout 30m ./pkg/... ./ipam/... ./plugins/...
	# In full, which under the race detector would take minutes (-deep: more).
	go test ./ipam/lease

.PHONY: test-whole
test-whole: root ## tests of the whole: repository rules, hosts on a switch
	@$(call section,whole system)
	go test -count=1 -timeout 30m $$(go list ./e2e/... | grep -v -e /conformance$$ -e /vm/guest$$ -e /history$$ -e /crowd$$ -e /chaos$$)
	# These take all processors for minutes, and others' timing with them.
	go test -count=1 -timeout 30m -p 1 ./e2e/crowd ./e2e/history ./e2e/chaos

.PHONY: test-history
test-history: PACKAGES := ca-certificates iproute2 etcd-server
test-history: root packages ## judge a cluster's history under kills, partitions, clock jumps (FOR=10m, SEED=)
	@$(call section,history of a cluster)
	HISTORY_FOR=$(or $(FOR),10m) HISTORY_SEED=$(SEED) go test -count=1 -timeout 3h -v -run TestHistory ./e2e/history

.PHONY: chaos
chaos: PACKAGES := ca-certificates iproute2 iputils-ping nftables etcd-server
chaos: root packages ## the fault campaign: three hosts, all plugins, every fault (DURATION=30m, SEED=, FAULT=name, JOURNAL=folder)
	@$(call section,fault campaign)
	go test -count=1 -timeout 3h -v ./e2e/chaos -duration $(or $(DURATION),30m) -seed $(or $(SEED),0) -fault '$(FAULT)' -journal '$(JOURNAL)'

.PHONY: test-guest
test-guest: PACKAGES := ca-certificates iproute2 iputils-ping $(GUEST)
test-guest: root packages ## tests for which most kernels lack something, on one that has it (RUN=TestName)
	@$(call section,tests on a guest's kernel)
	go test -count=1 -timeout 20m -v ./e2e/vm/guest -tests '$(RUN)' | sed '/^=== /d'

.PHONY: conformance
conformance: PACKAGES := ca-certificates $(GUEST)
conformance: root packages ## the reference plugins' own specs, 168 of macvlan and 10 of ipvlan, against ours
	@$(call section,conformance)
	go test -count=1 -v ./e2e/conformance

.PHONY: bench
bench: PACKAGES := ca-certificates etcd-server iperf3 iproute2 nftables $(GUEST)
bench: root packages build ## measure ours beside the reference (ARGS="-rounds 80 -json"; ARGS=-h lists them)
	@go run ./e2e/bench -bin $(BIN) $(ARGS)

.PHONY: lint
lint: ## gofmt, go vet, staticcheck
	@$(call section,lint)
	unformatted=$$(gofmt -s -l .)
	if [ -n "$$unformatted" ]; then
		printf 'gofmt -s would change:\n%s\n' "$$unformatted" >&2
		exit 1
	fi
	go vet ./...
	go tool staticcheck ./...

.PHONY: vuln
vuln: ## known vulnerabilities; needs the internet
	go tool govulncheck ./...

.PHONY: fmt
fmt: ## gofmt -s -w
	gofmt -s -w .

.PHONY: clean
clean: ## remove bin/
	rm -rf $(BIN)
