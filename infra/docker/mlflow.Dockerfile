# The experiment server, with a login. Build from the repository's root:
#   docker build -f infra/docker/mlflow.Dockerfile -t nurie-mlflow:0.1.0 .
FROM python:3.11.14-slim-bookworm

RUN useradd --uid 1000 --create-home nurie
COPY constraints.txt /tmp/constraints.txt
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt "mlflow[auth]" \
    && mkdir /mlflow \
    && chown nurie /mlflow

# The server runs nothing but itself: its job executor would add eight processes.
ENV MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
    MLFLOW_DISABLE_TELEMETRY=true
# Mount a disk here: it holds the store, the users and the artifacts.
WORKDIR /mlflow
USER 1000
EXPOSE 5000
# It wants MLFLOW_AUTH_ADMIN_PASSWORD and MLFLOW_FLASK_SERVER_SECRET_KEY from the environment.
CMD ["mlflow", "server", "--app-name", "basic-auth", "--host", "0.0.0.0", "--port", "5000", \
     "--workers", "1", "--backend-store-uri", "sqlite:////mlflow/mlflow.db", \
     "--artifacts-destination", "/mlflow/artifacts", \
     "--allowed-hosts", "mlflow,mlflow:5000,localhost:5000,127.0.0.1:5000"]
