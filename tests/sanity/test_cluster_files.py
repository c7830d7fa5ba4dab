"""The files that start clusters: what Ray, Kubernetes and hadolint say of them, and that they open no door."""

import copy
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from voxfleet import __version__
from voxfleet.cli import config_class, parse
from voxfleet.config.submission import ProfileConfig
from voxfleet.engine.output import as_document

ROOT = Path(__file__).parents[2]
LAUNCHED = ["ray_cluster.yaml", "configs/cluster/gcp.yaml", "configs/cluster/on-premise.yaml"]
KUBERAY = sorted((ROOT / "configs/cluster/kuberay").glob("*.yaml"))
KUBERNETES = "1.31"
# KubeRay's API reference, https://ray-project.github.io/kuberay/reference/api
FIELDS = {
    "RayCluster": {
        *("suspend", "managedBy", "autoscalerOptions", "headServiceAnnotations", "enableInTreeAutoscaling"),
        *("gcsFaultToleranceOptions", "headGroupSpec", "rayVersion", "workerGroupSpecs", "authOptions"),
    },
    "RayJob": {
        *("activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata"),
        *("clusterSelector", "submitterConfig", "managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML"),
        *("jobId", "submissionMode", "entrypointResources", "entrypointNumCpus", "entrypointNumGpus"),
        *("ttlSecondsAfterFinished", "shutdownAfterJobFinishes", "suspend"),
    },
    "head": {"template", "headService", "enableIngress", "rayStartParams", "serviceType"},
    "worker": {
        *("suspend", "groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "rayStartParams"),
        *("template", "scaleStrategy", "numOfHosts"),
    },
    "autoscaler": {
        *("resources", "image", "imagePullPolicy", "securityContext", "idleTimeoutSeconds", "upscalingMode"),
        *("version", "env", "envFrom", "volumeMounts"),
    },
}


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


def image():
    return re.match(r"# docker build -t (\S+)", (ROOT / "Dockerfile").read_text())[1]


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_takes_the_cluster_file(name):
    config = read(name)
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    validate_config(prepare_config(copy.deepcopy(config)))
    assert config["docker"]["image"] == image()


def test_a_cluster_file_with_a_mistake_is_refused():
    config = read("ray_cluster.yaml")
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(prepare_config({**config, "head_node_type": "nobody"}))


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_launched_cluster_asks_for_its_token_and_listens_to_nobody_outside(name):
    config = read(name)
    starts = [line for key in ("head_start_ray_commands", "worker_start_ray_commands") for line in config[key]]
    assert all("RAY_AUTH_MODE=token" in line for line in starts if "ray start" in line)
    assert any("--dashboard-host=127.0.0.1" in line for line in starts)
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert "0.0.0.0" not in json.dumps(config)


def test_on_aws_the_group_that_ray_would_open_to_everybody_is_not_made():
    config = read("ray_cluster.yaml")
    assert "security_group" not in config["provider"]
    assert all(kind["node_config"]["SecurityGroupIds"] for kind in config["available_node_types"].values())


def test_the_login_shells_of_the_launcher_find_the_programs():
    text = (ROOT / "Dockerfile").read_text()
    (path,) = re.findall(r"^ENV PATH=(\S+?):\$PATH", text, re.MULTILINE)
    assert f'echo "export PATH={path}:\\$PATH" > /etc/profile.d/' in text


@pytest.mark.parametrize("name", LAUNCHED[:2])
def test_spot_comes_first_and_on_demand_when_there_is_none(name):
    types = read(name)["available_node_types"]
    spot, other = types["gpu-spot"], types["gpu-on-demand"]
    assert "spot" in json.dumps(spot["node_config"]).lower()
    assert "spot" not in json.dumps(other["node_config"]).lower()
    assert spot["resources"] == other["resources"]
    assert spot["priority"] > other["priority"]


def cluster_of(document):
    return document["spec"]["rayClusterSpec"] if document["kind"] == "RayJob" else document["spec"]


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_kubernetes_and_kuberay_take_the_manifest(path):
    document = read(path)
    cluster = cluster_of(document)
    assert document["apiVersion"] == "ray.io/v1"
    assert set(document["spec"]) <= FIELDS[document["kind"]]
    assert set(cluster) <= FIELDS["RayCluster"]
    assert set(cluster["autoscalerOptions"]) <= FIELDS["autoscaler"]
    assert set(cluster["headGroupSpec"]) <= FIELDS["head"]
    assert all(set(group) <= FIELDS["worker"] for group in cluster["workerGroupSpecs"])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        assert [container["image"] for container in pod["spec"]["containers"]] == [image()]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_a_cluster_on_kubernetes_asks_for_its_token_and_is_not_public(path):
    cluster = cluster_of(read(path))
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "enableIngress" not in cluster["headGroupSpec"]
    assert cluster["rayVersion"] in (ROOT / "constraints.txt").read_text()


def test_all_manifests_are_of_the_same_cluster():
    first, *others = (cluster_of(read(path)) for path in KUBERAY)
    assert len(others) == 3
    assert all(other == first for other in others)


@pytest.mark.parametrize("path", [path for path in KUBERAY if "job" in path.stem], ids=lambda path: path.stem)
def test_the_job_of_a_manifest_is_one_of_ours(path):
    program, job, *arguments = shlex.split(read(path)["spec"]["entrypoint"])
    assert program == "voxfleet"
    config = parse(job, [argument.replace("/opt/voxfleet", str(ROOT)) for argument in arguments])
    assert isinstance(config, config_class(job))
    assert "work/" not in json.dumps(as_document(config))  # a folder that others than the manifest speak of
    assert config.resources.gpus_per_worker == 1
    assert config.resources.wait_s >= 1800  # a node is started first


def test_the_profile_is_one():
    assert ProfileConfig(**read("configs/cluster/profile.yaml")).job_server == "http://127.0.0.1:8265"


def test_hadolint_takes_the_dockerfile_and_it_installs_as_make_does():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    text = (ROOT / "Dockerfile").read_text()
    assert image().endswith(f":{__version__}")
    targets = re.findall(r"^RUN (?:\S+=\S+ )?make (.*)$", text, re.MULTILINE)[0].split()
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(f"\n{target}:" in makefile for target in targets)
    copied = [name for line in re.findall(r"^COPY --chown=ray (.*) \S+$", text, re.MULTILINE) for name in line.split()]
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(copied) == sorted(sent)
    assert all((ROOT / name).exists() for name in copied)
