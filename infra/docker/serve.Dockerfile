# Ray Serve: HTTP endpoint and colorizer replicas. Build from the repository's root:
#   docker build -f infra/docker/serve.Dockerfile -t nurie-serve:0.1.0 .
FROM python:3.11.14-slim-bookworm

# bash and wget: KubeRay starts and probes Ray with them.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bash wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home nurie

WORKDIR /opt/nurie
COPY constraints.txt pyproject.toml README.md LICENSE ./
# The dependencies are a layer of their own: a change of the code does not fetch torch again.
RUN pip install --no-cache-dir --constraint constraints.txt uv \
    && uv pip install --system --no-cache --compile-bytecode \
        -c constraints.txt -r pyproject.toml --extra postgres

COPY platform/ platform/
COPY pipelines/ pipelines/
COPY serve/ serve/
RUN uv pip install --system --no-cache --compile-bytecode --no-deps \
        -b constraints.txt . \
    && mkdir cache runs jobs \
    && chown nurie cache runs jobs

COPY configs/serve/ configs/serve/
# The built-in weights, so that the image colours pictures without a registry.
COPY assets/ assets/

ENV NURIE_CACHE=/opt/nurie/cache \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S=1 \
    RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S=2 \
    RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S=60 \
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=nurie_serve.proxy:middleware \
    OMP_WAIT_POLICY=PASSIVE \
    PYTHONUNBUFFERED=1
USER 1000
EXPOSE 8000
# Keys are mounted (nurie keys add NAME --file keys.yaml); without any it refuses to start.
CMD ["nurie", "serve", "configs/serve/nano.yaml", "--host", "0.0.0.0", "--model", "assets/nano", \
     "--keys-file", "/etc/nurie/keys.yaml"]
