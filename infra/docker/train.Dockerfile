# Ray head and workers that build data, train and evaluate. Build from the repository's root:
#   docker build -f infra/docker/train.Dockerfile -t nurie-train:0.1.0 .
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
        -c constraints.txt -r pyproject.toml

COPY platform/ platform/
COPY pipelines/ pipelines/
COPY serve/ serve/
RUN uv pip install --system --no-cache --compile-bytecode --no-deps \
        -b constraints.txt . \
    && mkdir data models runs \
    && chown nurie data models runs

COPY configs/ configs/
COPY assets/ assets/

# data/, models/ and runs/ of the commands: mount a shared disk there.
ENV RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    OMP_WAIT_POLICY=PASSIVE \
    PYTHONUNBUFFERED=1
USER 1000
CMD ["nurie", "--help"]
