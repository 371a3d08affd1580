"""What `kubectl apply -k deploy/kuberay/overlays/…` would send, checked without a cluster."""

import functools
import shutil
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from ray.serve.schema import ServeDeploySchema

from btray.config import load_config
from btray.tune.settings import load_sweep
from btray.version import __version__

CHECKOUT = Path(__file__).parents[2]
OVERLAYS = CHECKOUT / "deploy" / "kuberay" / "overlays"
KUBERNETES = "1.34"
RAY_KINDS = {"RayCluster", "RayJob", "RayService"}

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="no kubectl, whose kustomize puts the parts together"
)
every_overlay = pytest.mark.parametrize("overlay", ["cpu", "dev", "gpu"])


@functools.cache
def rendered(overlay):
    """Return what an overlay comes to: by kind and name."""
    command = ("kubectl", "kustomize", OVERLAYS / overlay)
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(text)}


def specifications(overlay):
    """Yield each cluster's specification with the kind it stands in."""
    for (kind, _), item in rendered(overlay).items():
        if kind in RAY_KINDS:
            spec = item["spec"]
            yield kind, spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def templates(overlay):
    """Yield the templates of all pods."""
    for _, cluster in specifications(overlay):
        yield cluster["headGroupSpec"]["template"]
        yield from (group["template"] for group in cluster["workerGroupSpecs"])
    for item in rendered(overlay).values():
        if item["kind"] == "RayJob":
            yield item["spec"]["submitterPodTemplate"]


def containers(overlay):
    for template in templates(overlay):
        yield from template["spec"]["containers"]


def groups(cluster):
    return {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


@every_overlay
def test_rays_kinds_fit_their_schema(overlay):
    schema = yaml.safe_load((Path(__file__).parent / "kuberay.schema.yaml").read_text())
    found = [item for item in rendered(overlay).values() if item["kind"] in RAY_KINDS]
    assert len(found) == 4
    for item in found:
        jsonschema.validate(item, schema, cls=jsonschema.Draft202012Validator)


@every_overlay
def test_kubernetes_kinds_and_pods_fit_kubernetes_schemas(overlay):
    for item in rendered(overlay).values():
        if item["kind"] not in RAY_KINDS:
            kubernetes_validate.validate(item, KUBERNETES, strict=True)
    for template in templates(overlay):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "any"} | template["metadata"],
        }
        kubernetes_validate.validate(pod | {"spec": template["spec"]}, KUBERNETES, strict=True)


@every_overlay
def test_each_cluster_asks_for_a_token_and_scales_by_version_2(overlay):
    for _, cluster in specifications(overlay):
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["enableInTreeAutoscaling"] is True
        assert cluster["autoscalerOptions"]["version"] == "v2"
        assert cluster["rayVersion"] == ray.__version__
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"


@every_overlay
def test_nodes_have_the_labels_that_placement_asks_for(overlay):
    wanted = load_config(OVERLAYS / overlay / "train.yaml").data.node_labels
    for kind, cluster in specifications(overlay):
        for name, group in groups(cluster).items():
            assert group["labels"] == {"btray.io/role": name}
        if kind != "RayService":
            data = groups(cluster)["data"]
            assert wanted.items() <= data["labels"].items()
            assert data["minReplicas"] >= 1


@every_overlay
def test_each_kind_has_the_nodes_it_needs(overlay):
    found = {kind: set(groups(cluster)) for kind, cluster in specifications(overlay)}
    assert found == {
        "RayCluster": {"data", "train", "serve"},
        "RayJob": {"data", "train"},
        "RayService": {"serve"},
    }


@every_overlay
def test_pods_are_confined(overlay):
    for template in templates(overlay):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        head = pod["containers"][0]["name"] == "ray-head"
        assert pod["automountServiceAccountToken"] is head  # the autoscaler asks Kubernetes
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            places = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert {"/tmp", "/home/btray"} <= places


@every_overlay
def test_every_container_is_bounded_and_every_node_is_probed(overlay):
    for container in containers(overlay):
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        assert (
            container["resources"]["requests"]["memory"]
            == container["resources"]["limits"]["memory"]
        )
        if container["name"] != "ray-job-submitter":
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()


@every_overlay
def test_credentials_come_from_a_secret_only(overlay):
    for container in containers(overlay):
        assert not [entry for entry in container.get("env", ()) if "KEY" in entry["name"]]
        if container["name"] != "ray-job-submitter":
            [source] = container["envFrom"]
            assert source["secretRef"]["name"] == "btray-bucket"
            assert source["secretRef"].get("optional", False) is (overlay == "dev")
    assert not [item for item in rendered(overlay).values() if item["kind"] == "Secret"]


@every_overlay
def test_the_images_are_of_this_version(overlay):
    wanted = "btray:dev" if overlay == "dev" else None
    tag = {"cpu": "cpu", "gpu": "cuda"}.get(overlay)
    for container in containers(overlay):
        image = wanted or f"registry.example.org/btray:{__version__}-{tag}"
        assert container["image"] == image


@every_overlay
def test_only_the_gpu_overlay_asks_for_gpus_and_only_for_training(overlay):
    for kind, cluster in specifications(overlay):
        for name, group in groups(cluster).items():
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            wanted = overlay == "gpu" and name == "train"
            assert limits.get("nvidia.com/gpu") == ("1" if wanted else None), (kind, name)


@every_overlay
def test_the_network_is_closed_but_for_what_is_named(overlay):
    policy = rendered(overlay)["NetworkPolicy", "btray"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert all(rule["from"] for rule in policy["ingress"])
    selected = policy["podSelector"]["matchLabels"].items()
    assert all(
        selected <= template["metadata"]["labels"].items() for template in templates(overlay)
    )


def test_disruptions_spare_heads_and_the_last_serving_pod():
    items = rendered("gpu")
    assert items["PodDisruptionBudget", "btray-head"]["spec"]["maxUnavailable"] == 0
    assert items["PodDisruptionBudget", "btray-serve"]["spec"]["minAvailable"] == 1
    service = items["RayService", "btray"]["spec"]["rayClusterConfig"]
    assert groups(service)["serve"]["minReplicas"] == 2
    assert not [kind for kind, _ in rendered("dev") if kind == "PodDisruptionBudget"]


@every_overlay
def test_the_jobs_run_btray_with_settings_that_load(overlay):
    assert load_config(OVERLAYS / overlay / "train.yaml").data.dataset
    assert load_sweep(OVERLAYS / overlay / "sweep.yaml", []).tune.space
    for name, command in (("train", "train"), ("sweep", "tune")):
        entrypoint = rendered(overlay)["RayJob", f"btray-{name}"]["spec"]["entrypoint"]
        assert entrypoint == f"python -m btray {command} --config /etc/btray/{name}.yaml"
    assert set(rendered(overlay)["ConfigMap", "btray-configs"]["data"]) == {
        "train.yaml",
        "sweep.yaml",
    }


@every_overlay
def test_every_part_can_be_applied_by_its_label(overlay):
    found = {item["metadata"]["labels"]["btray.io/workload"] for item in rendered(overlay).values()}
    assert found == {"common", "cluster", "train", "sweep", "serve"}


def test_the_service_is_that_of_serve_config():
    embedded = yaml.safe_load(rendered("cpu")["RayService", "btray"]["spec"]["serveConfigV2"])
    own = yaml.safe_load((CHECKOUT / "serve_config.yaml").read_text())
    assert embedded["applications"] == own["applications"]
    assert embedded["grpc_options"] == own["grpc_options"]
    assert ServeDeploySchema.model_validate(embedded).applications[0].name == "btray"
