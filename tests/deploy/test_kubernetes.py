"""The manifests, rendered: Kubernetes takes them, and the command and the server are as they say."""

from __future__ import annotations

import base64
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer.main
import yaml

from shardfeed import RemoteDataset
from shardfeed_cli.main import app
from shardfeed_server import serve
from shardfeed_server.config import ServerConfig, load_config
from shardfeed_wire.endpoint import parse_endpoint
from tests.deploy.kubectl import kubectl
from tests.deploy.pages import Page
from tests.photographs import write_shards
from tests.requirements import require
from tests.system.loaders import Loader, wait_until

pytestmark = [pytest.mark.peers, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy/kubernetes"
OVERLAYS = ("local-disks", "object-storage")
Object = dict[str, Any]
Secrets = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page("kubernetes.md")


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def rendered(folder: Path) -> list[Object]:
    return [each for each in yaml.safe_load_all(run(kubectl(), "kustomize", str(folder))) if each]


@pytest.fixture(scope="module")
def overlays(page: Page) -> dict[str, list[Object]]:
    """What `kubectl apply --kustomize`, as the page has it, would send."""
    folders = {name: page.command("kubectl apply --kustomize", name).split()[-1] for name in OVERLAYS}
    return {name: rendered(ROOT / folder) for name, folder in folders.items()}


def of_kind(objects: list[Object], *kinds: str) -> Object:
    (found,) = (each for each in objects if each["kind"] in kinds)
    return found


def pod(objects: list[Object], *kinds: str) -> Object:
    return of_kind(objects, *kinds)["spec"]["template"]["spec"]


def container(objects: list[Object], *kinds: str) -> Object:
    (found,) = pod(objects, *kinds)["containers"]
    return found


LOADER = ("Deployment", "DaemonSet")


def config_of(objects: list[Object], folder: Path) -> ServerConfig:
    """The server's configuration as it is read in the pod."""
    config_map = of_kind(objects, "ConfigMap")
    (volume,) = (v for v in pod(objects, *LOADER)["volumes"] if v["name"] == "config")
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    (name,) = config_map["data"]
    (folder / name).write_text(config_map["data"][name])
    return load_config(folder / name)


def test_the_overlays_have_the_objects_that_the_page_names(overlays: dict[str, list[Object]]) -> None:
    both = {"ConfigMap", "Job", "NetworkPolicy", "PodDisruptionBudget", "Service"}
    assert {each["kind"] for each in overlays["local-disks"]} == both | {"DaemonSet"}
    assert {each["kind"] for each in overlays["object-storage"]} == both | {"Deployment", "HorizontalPodAutoscaler"}


def test_kubernetes_knows_every_field_of_every_object(overlays: dict[str, list[Object]], tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{os.path.relpath(KUBERNETES / 'overlays/object-storage', tmp_path)}]\n"
        f"components: [{os.path.relpath(KUBERNETES / 'components/scale-on-waiting', tmp_path)}]\n"
    )
    by_waiting = rendered(tmp_path)
    objects = [each for objects in (*overlays.values(), by_waiting) for each in objects]
    for each in objects:
        kubernetes_validate.validate(each, "1.32", strict=True)
    wrong = of_kind(by_waiting, "Service")
    wrong["spec"]["clusterIp"] = "None"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.32", strict=True)


def test_the_autoscaler_by_waiting_asks_for_a_metric_that_prometheus_records(tmp_path: Path) -> None:
    (patch,) = yaml.safe_load((KUBERNETES / "components/scale-on-waiting/metrics.yaml").read_text())
    (metric,) = patch["value"]
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())
    recorded = {rule.get("record") for group in rules["groups"] for rule in group["rules"]}
    assert metric["external"]["metric"]["name"] in recorded


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_command_takes_the_flags_that_the_loader_is_given(overlay: str, overlays: dict[str, list[Object]]) -> None:
    loader = container(overlays[overlay], *LOADER)
    given = {variable["name"]: "4" for variable in loader["env"]}
    name, *arguments = [re.sub(r"\$\((\w+)\)", lambda found: given[found[1]], word) for word in loader["args"]]
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    taken = command.make_context(name, arguments).params
    mounted = {mount["name"]: mount["mountPath"] for mount in loader["volumeMounts"]}
    assert taken["config"] == Path(mounted["config"]) / "shardfeed.toml"
    assert taken["workers"] == 4
    with pytest.raises(Exception, match="No such option"):
        command.make_context(name, [*arguments, "--no-such-flag"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_ports_are_those_that_the_server_listens_at(
    overlay: str, overlays: dict[str, list[Object]], tmp_path: Path
) -> None:
    objects = overlays[overlay]
    config = config_of(objects, tmp_path)
    (bind,) = config.bind
    ports = {"data": parse_endpoint(bind).port, "http": int(str(config.http).rpartition(":")[2])}

    loader = container(objects, *LOADER)
    assert {port["name"]: port["containerPort"] for port in loader["ports"]} == ports
    service = of_kind(objects, "Service")
    assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == ports
    labels = of_kind(objects, *LOADER)["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    let_in = [rule["ports"][0]["port"] for rule in of_kind(objects, "NetworkPolicy")["spec"]["ingress"]]
    assert let_in == [ports["data"], ports["http"]]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert loader[probe]["httpGet"]["port"] == "http"
    endpoint = parse_endpoint(container(objects, "Job")["args"][0])
    assert (endpoint.host, endpoint.port) == (service["metadata"]["name"], ports["data"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_has_longer_than_a_server_takes_to_drain(overlay: str, overlays: dict[str, list[Object]]) -> None:
    seconds = pod(overlays[overlay], *LOADER)["terminationGracePeriodSeconds"]
    assert seconds > serve._DRAIN_SECONDS + 2 * serve._LINGER_SECONDS


STUCK = """
import os, pathlib, time

def transform(sample):
    if sample["cls"] >= 32:
        pathlib.Path(__file__).with_name(f"{os.getpid()}.stuck").touch()
        time.sleep(3600)
    return sample
"""


def test_a_server_all_of_whose_workers_are_stuck_ends_inside_that_time(
    overlays: dict[str, list[Object]], tmp_path: Path
) -> None:
    seconds = min(pod(overlays[overlay], *LOADER)["terminationGracePeriodSeconds"] for overlay in OVERLAYS)
    (tmp_path / "stuck.py").write_text(STUCK)
    (shard,) = write_shards(tmp_path, [(f"{n:03d}", {"txt": b"text", "cls": b"%d" % n}) for n in range(64)], 1)
    stuck = [
        "--code-dir",
        str(tmp_path),
        "--transform",
        "stuck:transform",
        "--sample-timeout",
        "3600",
        "--workers",
        "4",
    ]
    with (
        Loader.of([shard], "--fields", "txt cls", *stuck) as server,
        RemoteDataset(server.url, batch_size=8, shuffle=False) as dataset,
    ):
        next(iter(dataset))  # and more is asked for ahead
        wait_until(lambda: len(list(tmp_path.glob("*.stuck"))) == 4, what="four workers that are stuck")
        began = time.monotonic()
        server.tell(signal.SIGTERM)
        server.process.wait(seconds)
        assert time.monotonic() - began > serve._DRAIN_SECONDS  # it did have something to wait for


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_cached_fits_the_volume(overlay: str, overlays: dict[str, list[Object]], tmp_path: Path) -> None:
    config = config_of(overlays[overlay], tmp_path)
    if config.cache_dir is None:
        return
    (mount,) = (m for m in container(overlays[overlay], *LOADER)["volumeMounts"] if m["mountPath"] == config.cache_dir)
    (volume,) = (v for v in pod(overlays[overlay], *LOADER)["volumes"] if v["name"] == mount["name"])
    assert config.cache_bytes < int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi")) << 30


# -------------------------------------------------------------------------------------------- for real


@pytest.fixture(scope="module")
def secrets(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Secrets:
    """The Secrets that the page's commands make: their files by name."""
    folder = tmp_path_factory.mktemp("secrets")
    program = Path(sys.executable).parent / "shardfeed"
    run(str(program), *shlex.split(page.command("shardfeed keygen"))[1:], cwd=folder)
    made = {}
    for name in ("shardfeed-server", "shardfeed-clients", "shardfeed-trainer", "shardfeed-object-store"):
        words = shlex.split(page.command("kubectl create secret generic", name))[1:]
        secret = yaml.safe_load(run(kubectl(), *words, "--dry-run=client", "--output=yaml", cwd=folder))
        kubernetes_validate.validate(secret, "1.32")
        made[secret["metadata"]["name"]] = {
            key: base64.b64decode(value).decode() for key, value in secret["data"].items()
        }
    return made


def mount_secrets(objects: list[Object], secrets: Secrets, kinds: tuple[str, ...], into: Path) -> None:
    """Put the Secrets' files where the pod's volume `keys` has them."""
    (volume,) = (v for v in pod(objects, *kinds)["volumes"] if v["name"] == "keys")
    if "projected" in volume:
        files = [(s["secret"]["name"], i) for s in volume["projected"]["sources"] for i in s["secret"]["items"]]
        paths = {item["path"]: secrets[name][item["key"]] for name, item in files}
    else:
        paths = secrets[volume["secret"]["secretName"]]
    for path, text in paths.items():
        (into / path).parent.mkdir(parents=True, exist_ok=True)
        (into / path).write_text(text)
        (into / path).chmod(0o400)


AS_THE_POD = """
import os, sys
from shardfeed_wire.curve import load_server_keys
os.setgroups([10001])
os.setgid(10001)
os.setuid(10001)
load_server_keys(sys.argv[1])
"""


def test_the_server_takes_keys_with_the_owners_and_modes_that_a_secret_has_in_a_pod(
    overlays: dict[str, list[Object]], secrets: Secrets
) -> None:
    """A kubelet's files are root's and the pod's group's; a volume's own folder has mode 1777, those in it 0755."""
    require("peers", os.geteuid() == 0, "only root makes files of others")
    objects = overlays["local-disks"]
    context = pod(objects, *LOADER)["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (10001, 10001, 10001)
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # where pytest's folders are, others may not look
        volume = Path(name)
        mount_secrets(objects, secrets, LOADER, volume / "..data")
        for path in (volume / "..data").rglob("*"):
            os.chown(path, 0, 10001)
            path.chmod(0o755 if path.is_dir() else 0o440)
        for entry in (volume / "..data").iterdir():
            (volume / entry.name).symlink_to(f"..data/{entry.name}")
        (volume / "..data").chmod(0o755)
        volume.chmod(0o1777)
        run(sys.executable, "-c", AS_THE_POD, str(volume / "server.toml"))

        # A Secret of clients mounted as a volume of its own would not do: that is why it is projected.
        (volume / "clients").unlink()
        (volume / "clients").mkdir()
        (volume / "clients").chmod(0o1777)
        with pytest.raises(AssertionError, match="may be written by others"):
            run(sys.executable, "-c", AS_THE_POD, str(volume / "server.toml"))


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """The demo's data, as the job of compose packs it."""
    folder = tmp_path / "data"
    folder.mkdir()
    run(sys.executable, str(ROOT / "examples/pack_digits.py"), str(folder))
    return folder


def test_a_server_answers_the_probes_and_the_trainer_trains_with_the_rendered_settings(
    overlays: dict[str, list[Object]], secrets: Secrets, digits: Path, tmp_path: Path
) -> None:
    """What is in the ConfigMap, the Secrets and the pods' commands, with this machine's folders and free ports."""
    objects = overlays["local-disks"]
    text = of_kind(objects, "ConfigMap")["data"]["shardfeed.toml"]
    (tmp_path / "keys").mkdir()
    mount_secrets(objects, secrets, LOADER, tmp_path / "keys")
    text = text.replace('"/data/', f'"{digits}/').replace('"/keys/', f'"{tmp_path}/keys/')
    (tmp_path / "shardfeed.toml").write_text(re.sub(r"0\.0\.0\.0:\d+", "127.0.0.1:0", text))
    loader = container(objects, *LOADER)
    server = Loader(["--config", str(tmp_path / "shardfeed.toml"), "--workers", "1"], http=None)
    try:
        (figures,) = re.findall(r"health and figures: (http://[^/]+)/", "\n".join(server.lines))
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            with urllib.request.urlopen(figures + loader[probe]["httpGet"]["path"], timeout=30) as answer:
                assert answer.status == 200

        (tmp_path / "trainer").mkdir()
        mount_secrets(objects, secrets, ("Job",), tmp_path / "trainer")
        _, *arguments = (word.replace("/keys/", f"{tmp_path}/trainer/") for word in container(objects, "Job")["args"])
        program = str(ROOT / "examples/train_from_cluster.py")
        said = run(sys.executable, program, *server.endpoints, *arguments, "--epochs", "1")
        assert '"samples": 1437, "different": 1437' in said
    finally:
        server.stop()


def test_every_command_of_the_page_was_run(
    page: Page, overlays: dict[str, list[Object]], secrets: Secrets, tmp_path: Path
) -> None:
    (tmp_path / "node.yaml").write_text("apiVersion: v1\nkind: Node\nmetadata: {name: data-0}\n")
    words = shlex.split(page.command("kubectl label node"))
    labelled = run(kubectl(), "label", "--local", f"--filename={tmp_path}/node.yaml", "--output=yaml", words[-1])
    selector = pod(overlays["local-disks"], "DaemonSet")["nodeSelector"]
    assert yaml.safe_load(labelled)["metadata"]["labels"] == selector
    page.check()
