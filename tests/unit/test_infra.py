"""Images and manifests, checked without Docker and without Kubernetes."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from sqlalchemy.engine import make_url

import nurie
from nurie.config.loader import load_config
from nurie.config.serve import ServeConfig
from nurie_cli.main import main
from nurie_serve.deploy_file import check_deploy_file, find_faults

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT.parent / "shared" / "schemas" / "kuberay"
MANIFESTS = sorted((ROOT / "infra/kubernetes").glob("*.yaml"))
DOCKERFILES = sorted((ROOT / "infra/docker").glob("*.Dockerfile"))
RAY_KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}
SECRETS = re.compile(r"(?i)password|token|secret|key$")


def documents() -> list[dict[str, Any]]:
    return [
        document
        for path in MANIFESTS
        if path.name != "kustomization.yaml"
        for document in yaml.safe_load_all(path.read_text())
    ]


def named(document: dict[str, Any]) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


DOCUMENTS = documents()
RAY_DOCUMENTS = [document for document in DOCUMENTS if document["kind"] in RAY_KINDS]
PLAIN_DOCUMENTS = [document for document in DOCUMENTS if document["kind"] not in RAY_KINDS]


def document(kind: str) -> dict[str, Any]:
    return next(each for each in DOCUMENTS if each["kind"] == kind)


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping inside a document."""
    if isinstance(value, dict):
        yield value
    children = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list):
        for child in children:
            yield from mappings(child)


def pods(value: Any) -> list[dict[str, Any]]:
    return [each for each in mappings(value) if isinstance(each.get("containers"), list)]


def strict(schema: Any) -> Any:
    """Turn an OpenAPI schema of a CRD into JSON Schema where unknown fields are errors."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {name: strict(value) for name, value in schema.items()}
    free = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not free:
        result.setdefault("additionalProperties", False)
    return result


def kuberay_validator(kind: str) -> jsonschema.Draft202012Validator:
    path = SCHEMAS / f"ray.io_{RAY_KINDS[kind]}.yaml"
    if not path.is_file():
        pytest.skip("schemas absent")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    versions = yaml.load(path.read_text(), Loader=loader)["spec"]["versions"]
    schema = next(each for each in versions if each["name"] == "v1")["schema"]["openAPIV3Schema"]
    return jsonschema.Draft202012Validator(strict(schema))


@pytest.mark.parametrize("manifest", RAY_DOCUMENTS, ids=named)
def test_kuberay_schema(manifest):
    validator = kuberay_validator(manifest["kind"])
    errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]
    assert not errors
    broken = copy.deepcopy(manifest)
    pods(broken)[0]["containers"][0]["imagePullPolice"] = "Always"
    assert not validator.is_valid(broken), "a typo deep inside has to be found"


@pytest.mark.parametrize("manifest", PLAIN_DOCUMENTS, ids=named)
def test_kubernetes_schema(manifest):
    kubernetes_validate.validate(manifest, "1.37", strict=True)
    broken = copy.deepcopy(manifest)
    broken["metadata"]["labls"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.37", strict=True)


@pytest.mark.parametrize("manifest", [each for each in DOCUMENTS if pods(each)], ids=named)
def test_pods_are_confined(manifest):
    for pod in pods(manifest):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        heads = any(container["name"] == "ray-head" for container in pod["containers"])
        assert heads or pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            volumes = {volume["name"] for volume in pod["volumes"]}
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


@pytest.mark.parametrize("manifest", DOCUMENTS, ids=named)
def test_no_secret_is_written_down(manifest):
    assert manifest["kind"] != "Secret"
    for mapping in mappings(manifest):
        if SECRETS.search(str(mapping.get("name", ""))) and "mountPath" not in mapping:
            assert "value" not in mapping, mapping
    for name in manifest.get("data", {}):
        assert not SECRETS.search(name), name


@pytest.mark.parametrize("manifest", RAY_DOCUMENTS, ids=named)
def test_ray_demands_a_token_of_a_secret(manifest):
    clusters = [each for each in mappings(manifest) if "headGroupSpec" in each]
    assert len(clusters) == 1
    assert clusters[0]["authOptions"] == {"mode": "token", "secretName": "nurie-ray-token"}


def test_versions_agree():
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    assert "flask-wtf" in pins, "a dependency of mlflow[auth], which only the image installs"
    ray = {each["rayVersion"] for each in mappings(RAY_DOCUMENTS) if "rayVersion" in each}
    assert ray == {pins["ray"]}
    images = {each["image"] for each in mappings(DOCUMENTS) if isinstance(each.get("image"), str)}
    roles = {path.name.split(".")[0] for path in DOCKERFILES}
    foreign = {image for image in images if not image.startswith("nurie-")}
    assert images - foreign == {f"nurie-{role}:{nurie.__version__}" for role in roles}
    assert all(re.search(r":\d+\.\d+", image) for image in foreign), "a version, not a moving name"
    bases = {re.findall(r"^FROM (\S+)", path.read_text(), re.M)[-1] for path in DOCKERFILES}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", bases.pop())


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfile(path):
    text = path.read_text().replace("\\\n", " ")
    assert ":latest" not in text
    assert re.search(r"^USER (\d+)$", text, re.M), "a numeric user, for runAsNonRoot"
    assert re.findall(r"^USER (\d+)$", text, re.M)[-1] != "0"
    assert f"-t nurie-{path.name.split('.')[0]}:{nurie.__version__} " in text
    for line in re.findall(r"^RUN (.*)$", text, re.M):
        for command in re.findall(r"\bpip install\b[^&]*", line):
            assert "constraint" in command or "-c " in command or "--no-deps" in command, command
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for arguments in re.findall(r"^COPY (.*)$", text, re.M):
        for source in shlex.split(arguments)[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source.split('/')[0]}" in ignored, f"{source} does not reach the builder"


def test_kustomization_names_all_that_stays():
    listed = yaml.safe_load((ROOT / "infra/kubernetes/kustomization.yaml").read_text())
    files = {path.name for path in MANIFESTS}
    assert set(listed["resources"]) == files - {"kustomization.yaml", "train-job.yaml"}


def test_serve_config():
    config = yaml.safe_load(document("RayService")["spec"]["serveConfigV2"])
    assert list(find_faults(config)) == []
    (application,) = config["applications"]
    args = ServeConfig(**application["args"])
    assert args.port == config["http_options"]["port"]
    gpu = document("RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert gpu["maxReplicas"] >= args.autoscaling.max_replicas
    limits = gpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert float(limits["cpu"]) >= args.num_cpus
    assert float(limits["nvidia.com/gpu"]) >= args.num_gpus
    assert gpu["template"]["spec"]["terminationGracePeriodSeconds"] > args.limits.deadline_s


APPLICATION = {"import_path": "nurie_serve.app:build"}


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ({"aplications": []}, "aplications: unknown key; did you mean applications?"),
        ({**APPLICATION, "route_prefx": "/"}, "applications.0.route_prefx: unknown key"),
        (
            {**APPLICATION, "deployments": [{"name": "Colorizer", "max_ongoing_request": 4}]},
            "applications.0.deployments.0.max_ongoing_request: unknown key; did you mean max_ong",
        ),
        ({**APPLICATION, "args": {"modell": "x"}}, "applications.0.args.modell: Extra inputs"),
        ({**APPLICATION, "args": {"port": 0}}, "applications.0.args.port: Input should be"),
        ({"import_path": "nurie_serve.app:bild"}, "applications.0.import_path: nurie_serve.app"),
    ],
)
def test_deploy_file_check_names_the_fault(document, fault, tmp_path):
    content = document if "aplications" in document else {"applications": [document]}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=re.escape(f"serve.yaml: {fault}")):
        check_deploy_file(tmp_path / "serve.yaml")


@pytest.mark.parametrize("name", ["nano", "sdxl"])
def test_written_deploy_file_is_the_same_application(name, tmp_path, capsys):
    file = tmp_path / "serve.yaml"
    config = ROOT / f"configs/serve/{name}.yaml"
    assert main(["serve", str(config), "--write-deploy-file", str(file)]) == 0
    (application,) = yaml.safe_load(file.read_text())["applications"]
    assert ServeConfig(**application["args"]) == load_config(config)
    assert main(["serve", "--check-deploy-file", str(file)]) == 0
    file.write_text(file.read_text().replace("route_prefix", "route_prefx"))
    assert main(["serve", "--check-deploy-file", str(file)]) == 2
    assert "did you mean route_prefix?" in capsys.readouterr().err


def test_shipped_deploy_file_is_what_the_command_writes(tmp_path):
    shipped, written = ROOT / "serve/nano.yaml", tmp_path / "nano.yaml"
    check_deploy_file(shipped)
    config = ROOT / "configs/serve/nano.yaml"
    assert main(["serve", str(config), "--write-deploy-file", str(written)]) == 0
    assert shipped.read_text() == written.read_text()


def test_train_job_runs_an_existing_command(monkeypatch):
    monkeypatch.chdir(ROOT)
    job = document("RayJob")["spec"]
    words = shlex.split(job["entrypoint"])
    assert words[:4] == ["env", "--chdir=/opt/nurie", "nurie", "train"]
    assert words[5] == "--tracking.uri"
    config = load_config(Path(words[4]), {"tracking.uri": words[6]})
    assert config.tracking.uri == "http://mlflow:5000"
    groups = {each["groupName"]: each for each in job["rayClusterSpec"]["workerGroupSpecs"]}
    assert groups["gpu"]["replicas"] == config.engine.num_workers
    # Relative paths of the config must lie on the shared disk or in the image.
    mounts = groups["gpu"]["template"]["spec"]["containers"][0]["volumeMounts"]
    shared = {mount["mountPath"].removeprefix("/opt/nurie/") for mount in mounts}
    for path in (config.output, config.data.shards, config.components):
        assert path.relative_to(ROOT).parts[0] in shared


def test_mlflow_is_reached_under_a_name_that_it_answers():
    (service,) = [each for each in DOCUMENTS if named(each) == "Service-mlflow"]
    host = f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    dockerfile = (ROOT / "infra/docker/mlflow.Dockerfile").read_text()
    assert f",{host}," in dockerfile.split('"--allowed-hosts"')[1]
    assert "basic-auth" in dockerfile
    serve = yaml.safe_load(document("RayService")["spec"]["serveConfigV2"])
    assert serve["applications"][0]["args"]["tracking_uri"] == f"http://{host}"
    assert f"http://{host}" in document("RayJob")["spec"]["entrypoint"]


def test_jobs_of_the_endpoint_are_kept_where_every_pod_sees_them():
    service = document("RayService")["spec"]
    (application,) = yaml.safe_load(service["serveConfigV2"])["applications"]
    jobs = ServeConfig(**application["args"]).jobs
    address = make_url(jobs.url)
    (database,) = [each for each in DOCUMENTS if named(each) == f"Service-{address.host}"]
    assert database["spec"]["ports"][0]["port"] == 5432
    assert address.password is None, "it comes from a secret"
    for pod in pods(service):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert "PGPASSWORD" in [entry["name"] for entry in container["env"]]
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert "persistentVolumeClaim" in volumes[mounts[jobs.folder]]
    assert "--extra postgres" in (ROOT / "infra/docker/serve.Dockerfile").read_text()


def test_network_is_closed_by_default():
    policies = {each["metadata"]["name"]: each for each in DOCUMENTS
                if each["kind"] == "NetworkPolicy"}  # fmt: skip
    assert policies["deny-all"]["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    # Every pod of ours is meant by some policy, so that a new label is not cut off by accident.
    selected = [policy["spec"]["podSelector"]["matchLabels"] for name, policy in policies.items()
                if name not in ("deny-all", "dns")]  # fmt: skip
    for each in mappings(DOCUMENTS):
        if pods(each.get("spec", {})) and "containers" in each["spec"]:
            labels = each["metadata"]["labels"]
            assert any(wanted.items() <= labels.items() for wanted in selected), labels


def test_head_script_is_sound():
    script = ROOT / "infra/ray/start-head.sh"
    assert script.stat().st_mode & 0o111
    subprocess.run(["sh", "-n", str(script)], check=True)
