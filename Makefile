# Everything that is done with this project; `make` lists it. Each target sets up what it needs.

.DEFAULT_GOAL := help
.PHONY: help setup run demo demo-big test unit attacks faults bench bench-quick bench-report requirements reference format lint \
        types layers protos protos-fresh breaking examples versions check clean

# The first Python that runs and is new enough; or name one: make PYTHON=python3.12 ...
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

BIN := .venv/bin
READY := .venv/.ready
GENERATOR := .generator/bin
GENERATOR_READY := .generator/.ready
EXAMPLES := orders billing stock
PACKAGES := identity clients tests

# .ci/run puts grpcurl here; what lies here is used.
export PATH := $(CURDIR)/.tools:$(PATH)

T ?= tests --requirements

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(READY)  ## make the virtual environment in .venv

run: $(READY)  ## start the service on 127.0.0.1:50551, everything embedded under .identity/
	@$(BIN)/identity dev

demo: $(READY)  ## tell the whole story against a fresh service, and measure how fast a revocation bites
	@PYTHONPATH=clients/examples $(BIN)/python clients/examples/demo.py

demo-big: $(READY)  ## the same against two replicas over PostgreSQL and Redis, and kill one part after the other
	@PYTHONPATH=.:clients/examples $(BIN)/python clients/examples/demo_big.py

test: $(READY)  ## run all tests, or a part: make test T=tests/unit
	@$(BIN)/python -m pytest $(T)

unit: $(READY)  ## run the tests of pure rules: seconds
	@$(BIN)/python -m pytest -q tests/unit

attacks: $(READY)  ## forge a million tokens, guess 10,000 passwords, time 6,000 log-ins, send 10,000 bodies to every method, crowd the door, flood a peer
	@IDENTITY_TEST_MUTANTS=1000000 IDENTITY_TEST_GUESSES=10000 IDENTITY_TEST_LOG_INS=2000 IDENTITY_TEST_BODIES=10000 \
	  IDENTITY_TEST_CROWD=1000 IDENTITY_TEST_FORGERIES=10000 $(BIN)/python -m pytest -q -rP --timeout=3600 \
	  tests/attacks tests/rpc/test_random_bodies.py tests/rpc/test_crowding.py

faults: $(READY)  ## kill, cut and stop, ten times as often and long as `make test` does: about half an hour
	@IDENTITY_TEST_ROUNDS=10 IDENTITY_TEST_REVOCATIONS=100000 $(BIN)/python -m pytest -q tests/faults --timeout=3600

bench: $(READY)  ## measure, into build/bench.json: make bench B=verify for a part, D=postgresql for another database
	@$(BIN)/python -m tests.bench $(if $(D),--database "$(D)") $(B)

bench-quick: $(READY)  ## the same, smaller: within three minutes
	@$(BIN)/python -m tests.bench --quick $(if $(D),--database "$(D)") $(B)

bench-report: $(READY)  ## put the figures of build/bench.json into tests/bench/README.md, and draw them
	@$(BIN)/python -m tests.bench.report

reference: $(READY)  ## write the tables of settings and metrics in identity/README.md anew
	@$(BIN)/python -m identity.reference

requirements: $(READY)  ## show which tests prove which requirement; fails where one that is due has none
	@$(BIN)/python -m pytest -q -m requirement --requirements tests

format: $(READY)  ## format Python and protos
	@$(BIN)/ruff format $(PACKAGES)
	@$(BIN)/ruff check --fix $(PACKAGES)
	@$(BIN)/buf format -w protos

lint: $(READY)
	@$(BIN)/ruff format --check $(PACKAGES)
	@$(BIN)/ruff check $(PACKAGES)
	@$(BIN)/buf format -d --exit-code protos
	@$(BIN)/buf lint protos
	@$(BIN)/buf lint --config .buf.examples.yaml

types: $(READY)
	@$(BIN)/mypy
	@$(BIN)/mypy -p tests
	@$(BIN)/mypy --explicit-package-bases clients/examples/demo.py clients/examples/demo_big.py \
	  clients/examples/orders/*.py clients/examples/billing/*.py clients/examples/stock/*.py clients/examples/storefront/*.py

layers: $(READY)
	@$(BIN)/lint-imports

protos: $(GENERATOR_READY)  ## generate the stubs anew
	@$(call generate,.,clients/examples)

protos-fresh: $(GENERATOR_READY)
	@rm -rf .generator/out && mkdir -p .generator/out/examples
	@$(call generate,.generator/out,.generator/out/examples)
	@for new in $$(cd .generator/out && find identity -type f); do cmp .generator/out/$$new $$new || exit 1; done
	@for new in $$(cd .generator/out/examples && find . -type f); do \
	  cmp .generator/out/examples/$$new clients/examples/$$new || exit 1; done

breaking: $(READY)
	@$(BIN)/buf breaking protos --against protos/released.binpb

versions: $(READY)  ## run the client tests at the lowest and highest versions a peer may have, on every Python here
	@$(BIN)/python tests/packaging/versions.py $(VERSIONS)

check: lint types layers protos-fresh breaking  ## all that CI runs
	@$(MAKE) --no-print-directory test
	@$(MAKE) --no-print-directory versions VERSIONS=--ends
	@echo "all checks passed"

clean:  ## remove what the targets made; the dev service's data in .identity/ stays
	rm -rf .venv .generator .versions .tools .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test-redis]' || \
	  echo "no Redis for tests/mirror: put redis-server on the PATH, or a C compiler and begin again" >&2
	@touch $@

# The generator lives apart: it needs an older protobuf than everything else, and its version fixes the oldest
# grpcio and protobuf that a peer may have.
$(GENERATOR_READY): Makefile
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed" >&2; exit 1; }
	@$(PYTHON) -m venv .generator
	@$(GENERATOR)/python -m pip install --quiet --disable-pip-version-check \
	  grpcio-tools==1.76.0 protobuf==6.33.6 mypy-protobuf==5.1.0 types-protobuf==7.35.1.20260906
	@touch $@

# $(1): where identity/v1 goes; $(2): where the examples go
define generate
PATH="$(CURDIR)/$(GENERATOR):$$PATH" $(GENERATOR)/python -m grpc_tools.protoc -I protos \
  --python_out=$(1) --mypy_out=quiet:$(1) --grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) protos/identity/v1/*.proto && \
for name in $(EXAMPLES); do \
  PATH="$(CURDIR)/$(GENERATOR):$$PATH" $(GENERATOR)/python -m grpc_tools.protoc -I protos -I clients/examples/$$name/protos \
    --python_out=$(2) --mypy_out=quiet:$(2) --grpc_python_out=$(2) --mypy_grpc_out=quiet:$(2) \
    clients/examples/$$name/protos/$$name/v1/*.proto || exit 1; \
done
endef
