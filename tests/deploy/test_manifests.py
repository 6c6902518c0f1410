"""Deploy files ask for what their recipe needs, and keep others out of its cluster."""

import re
from pathlib import Path

import pytest
import yaml

from axpo.config import load_recipe
from axpo.placement import Cluster, Node, make_plan, smallest_cluster

KUBERAY = Path("deploy/kuberay/rayjob.yaml")
SLURM = Path("deploy/slurm/axpo.sbatch")
DOCKERFILE = Path("deploy/Dockerfile")
RECIPE = re.compile(r"deploy/recipes/[\w.-]+\.yaml")


def documents():
    return {document["kind"]: document for document in yaml.safe_load_all(KUBERAY.read_text())}


def pods():
    """Return the specification of every pod of the job, by what it is."""
    job = documents()["RayJob"]["spec"]
    cluster = job["rayClusterSpec"]
    return {
        "submitter": job["submitterPodTemplate"]["spec"],
        "head": cluster["headGroupSpec"]["template"]["spec"],
        **{group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]},
    }


def needed(recipe):
    """Return the nodes of a recipe, each with its GPUs and CPUs."""
    return [(node.gpus, node.cpus) for node in smallest_cluster(load_recipe(recipe)).nodes]


def test_the_kuberay_job_asks_for_exactly_what_its_recipe_needs():
    job = documents()["RayJob"]["spec"]
    recipe = RECIPE.search(job["entrypoint"])[0]
    assert job["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    offered = []
    for group in job["rayClusterSpec"]["workerGroupSpecs"]:
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
        one = (int(resources["limits"]["nvidia.com/gpu"]), int(resources["limits"]["cpu"]))
        offered += [one] * group["replicas"]
    assert offered == needed(recipe)
    nodes = [Node(f"pod {i}", cpus, gpus) for i, (gpus, cpus) in enumerate(offered)]
    make_plan(load_recipe(recipe), Cluster(tuple(nodes)))


def test_the_slurm_job_asks_for_exactly_what_its_default_recipe_needs():
    text = SLURM.read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", text, re.MULTILINE))
    recipe = re.search(r"set -- (\S+)", text)[1]
    one = (int(asked["gpus-per-node"]), int(asked["cpus-per-task"]))
    assert [one] * int(asked["nodes"]) == needed(recipe)


def test_the_slurm_examples_ask_for_what_their_recipes_need():
    text = SLURM.read_text()
    defaults = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", text, re.MULTILINE))
    examples = re.findall(r"sbatch (--.*) deploy/slurm/axpo.sbatch \\\n#\s+(\S+)", text)
    assert len(examples) == 2
    for options, recipe in examples:
        asked = defaults | dict(re.findall(r"--([\w-]+)=(\S+)", options))
        nodes = needed(recipe)
        assert int(asked["nodes"]) == len(nodes)
        assert int(asked["gpus-per-node"]) == max(gpus for gpus, _ in nodes)
        assert int(asked["cpus-per-task"]) == max(cpus for _, cpus in nodes)


@pytest.mark.parametrize("pod", ["submitter", "head", "gpu"])
def test_every_pod_runs_as_a_plain_user_without_rights(pod):
    spec = pods()[pod]
    assert spec["automountServiceAccountToken"] is False
    user = spec["securityContext"]
    assert user["runAsUser"] == 1000
    assert user["runAsNonRoot"] is True
    # Without these the sandbox cannot make its user namespace.
    assert user["seccompProfile"] == user["appArmorProfile"] == {"type": "Unconfined"}
    for container in spec["containers"]:
        rights = container["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["capabilities"] == {"drop": ["ALL"]}


def test_ray_asks_for_a_token_and_a_policy_keeps_other_pods_out():
    job = documents()["RayJob"]["spec"]
    assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    policy = documents()["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    labels = policy["podSelector"]["matchLabels"]
    own, operator = policy["ingress"]
    assert own["from"] == [{"podSelector": {"matchLabels": labels}}]
    assert [port["port"] for port in operator["ports"]] == [8265]
    cluster = job["rayClusterSpec"]
    templates = [
        job["submitterPodTemplate"],
        cluster["headGroupSpec"]["template"],
        *(group["template"] for group in cluster["workerGroupSpecs"]),
    ]
    assert all(labels.items() <= template["metadata"]["labels"].items() for template in templates)


def test_the_images_have_a_pinned_base_and_a_user_of_their_own():
    text = DOCKERFILE.read_text()
    bases = dict(re.findall(r"^FROM (\S+) AS (\w+)$", text, re.MULTILINE))
    assert list(bases.values()) == ["gpu", "cpu"]  # the extras of AXPO, and so the values of EXTRA
    assert all(re.fullmatch(r"[\w/]+:[\w.-]+@sha256:[0-9a-f]{64}", base) for base in bases)
    assert re.findall(r"^FROM (\S+)$", text, re.MULTILINE) == ["${EXTRA}"]
    user = text.index("\nUSER 1000:1000")
    assert user < text.index("\nCOPY ")
    assert text.rindex("USER ") == user + 1


def test_secrets_data_and_runs_stay_out_of_the_image():
    ignored = Path("deploy/Dockerfile.dockerignore").read_text().splitlines()
    assert {"**/.env", "data", "runs", ".git", "models", "build"} <= set(ignored)
    # The set-up of pip that a build is given as a secret may lie in the checkout.
    assert "src=pip.conf" in DOCKERFILE.read_text()
    assert "**/pip.conf" in ignored


@pytest.mark.parametrize("file", ["README.md", "deploy/README.md", str(SLURM)])
def test_ray_is_never_started_without_a_token(file):
    text = Path(file).read_text(encoding="utf-8")
    before = text[: text.index("ray start --head")]
    assert "RAY_AUTH_MODE=token" in before
    # On a fresh machine there is no token yet, and Ray would end in a traceback.
    assert "ray get-auth-token --generate" in before or "RAY_AUTH_TOKEN=$(" in before
