"""Who holds the memory: with the kernel's files and NVML made by hand, and once for real."""

import os

import pytest

from model_server.devices import find_device
from model_server.memory_watch import CardProcess, MemoryWatch, process_tree
from tests.unit.model_server.fake_nvml import FakeNvml
from tests.unit.model_server.making import GIB, make_cpu, make_gpu

MIB = 1024**2
ENGINE = 100
"""The guard's pid; the engine's processes are 101 and 102."""


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def rollup(pss_mib, rss_mib):
    return (
        "00400000-7ffd00000000 ---p 00000000 00:00 0    [rollup]\n"
        f"Rss:     {rss_mib * 1024} kB\nPss:     {pss_mib * 1024} kB\nPss_Anon:    4 kB\n"
    )


@pytest.fixture
def root(tmp_path):
    """16 GiB, 12 of them available, on a machine that is no container."""
    write(
        tmp_path,
        {"proc/meminfo": f"MemTotal: {16 * 1024**2} kB\nMemAvailable: {12 * 1024**2} kB\n"},
    )
    namespace(tmp_path, 4026531836)
    return tmp_path


def namespace(root, number):
    link = root / "proc/self/ns/pid"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(f"pid:[{number}]")


def watch(root, device=None, nvml=None, environ=None, pids=(ENGINE, 101, 102)):
    return MemoryWatch(
        device=lambda: device or make_cpu(),
        environ=environ or {},
        nvml=nvml,
        root=root,
        tree=lambda pid: pids if pid == ENGINE else (),
    )


def card(uuid="GPU-a"):
    return make_gpu(uuid=uuid)


class TestOnACpu:
    """The kernel tells what there is, and what each process holds of it."""

    def test_shared_pages_count_once(self, root):
        """The engine's bytes are the sum of its proportional sets, not of its resident ones."""
        for pid, pss in ((ENGINE, 10), (101, 300), (102, 1200)):
            write(root, {f"proc/{pid}/smaps_rollup": rollup(pss, pss + 500)})
        reading = watch(root).look(ENGINE)
        assert reading.engine_bytes == reading.engine_host_bytes == 1510 * MIB
        assert watch(root).engine_bytes(ENGINE) == 1510 * MIB
        assert reading.others_bytes is None
        assert reading.cards == reading.processes == ()

    def test_mapped_files_do_not_come_back(self, root):
        """They are the kernel's cache, and free already; on an old kernel, which says less, all of it."""
        told = "Pss: 900 kB\nPss_Anon: 500 kB\nPss_File: 380 kB\nPss_Shmem: 20 kB\n"
        write(root, {f"proc/{ENGINE}/smaps_rollup": told, "proc/101/smaps_rollup": "Pss: 7 kB\n"})
        assert watch(root).returnable_bytes(ENGINE) == (520 + 7) * 1024
        assert watch(root, pids=()).returnable_bytes(ENGINE) is None

    def test_on_a_card_all_of_it_comes_back(self, root):
        """The driver's figure of the engine's processes."""
        nvml = FakeNvml({"GPU-a": 70 * GIB}, {"GPU-a": ((101, 9 * GIB),)})
        assert watch(root, card(), nvml).returnable_bytes(ENGINE) == 9 * GIB

    def test_the_resident_set_where_the_kernel_tells_no_share(self, root):
        """A file that may not be read, or that old kernels lack: too much rather than too little."""
        write(root, {f"proc/{ENGINE}/status": "Name:\tx\nVmRSS:\t  2048 kB\n"})
        write(root, {"proc/101/smaps_rollup": rollup(3, 9), "proc/101/status": "VmRSS: 99999 kB\n"})
        write(root, {"proc/102/status": "Name:\ta zombie\nState:\tZ\n"})
        assert watch(root).look(ENGINE).engine_bytes == 5 * MIB

    def test_no_engine_holds_nothing(self, root):
        """Asleep or between two lives: 0, which is known."""
        assert watch(root).look(None).engine_bytes == 0
        assert watch(root, pids=()).look(ENGINE).engine_bytes == 0

    def test_what_cannot_be_read_at_all_is_unknown(self, root):
        """An engine that lives, and not one file of its processes: not 0."""
        assert watch(root).look(ENGINE).engine_bytes is None
        assert watch(root).engine_bytes(ENGINE) is None

    def test_free_is_what_the_planner_sees(self, root):
        """System, container and memory node: the tightest counts, as in the plan."""
        group = "sys/fs/cgroup/box"
        write(
            root,
            {
                "proc/self/cgroup": "0::/box\n",
                f"{group}/memory.max": str(4 * GIB),
                f"{group}/memory.current": str(3 * GIB),
                f"{group}/memory.stat": f"inactive_file {GIB // 2}\n",
            },
        )
        planned = find_device("cpu", environ={}, root=root)
        reading = watch(root).look(None)
        assert (reading.total_bytes, reading.free_bytes) == (4 * GIB, 3 * GIB // 2)
        assert (planned.total_bytes, planned.free_bytes) == (4 * GIB, 3 * GIB // 2)
        assert (reading.host_total_bytes, reading.host_free_bytes) == (4 * GIB, 3 * GIB // 2)
        assert watch(root).free_bytes() == 3 * GIB // 2

    def test_cards_are_shown_beside_an_engine_on_the_cpu(self, root):
        """They are none of its device, and change nothing of it."""
        reading = watch(root, nvml=FakeNvml({"GPU-a": GIB})).look(None)
        assert [one.uuid for one in reading.cards] == ["GPU-a"]
        assert (reading.total_bytes, reading.others_bytes) == (16 * GIB, None)

    def test_this_process_for_real(self):
        """On the machine that runs the tests the figures make sense, and a child is in the tree."""
        real = MemoryWatch(device=make_cpu, environ={}, nvml=None)
        own = real.look(os.getpid())
        assert os.getpid() in process_tree(os.getpid())
        assert own.engine_bytes is not None
        assert own.free_bytes is not None
        assert 5 * MIB < own.engine_bytes < own.host_total_bytes
        assert 0 < own.free_bytes <= own.host_total_bytes

    def test_a_process_that_has_ended_has_no_tree(self):
        """A pid beyond what the kernel gives out."""
        assert process_tree(2**22 + 1) == []


class TestOnAGpu:
    """The driver tells what there is, and what each process holds of it."""

    PROCESSES = ((101, 50 * GIB), (7, 3 * GIB), (102, 10 * GIB))

    def test_engine_and_others(self, root):
        """The engine's processes are those of its tree; all else that is used is others'."""
        nvml = FakeNvml({"GPU-b": 70 * GIB, "GPU-a": 16 * GIB}, {"GPU-a": self.PROCESSES})
        seen = watch(root, card(), nvml)
        reading = seen.look(ENGINE)
        assert (reading.total_bytes, reading.free_bytes) == (80 * GIB, 16 * GIB)
        assert (reading.engine_bytes, reading.others_bytes) == (60 * GIB, 4 * GIB)
        assert seen.engine_bytes(ENGINE) == 60 * GIB
        assert seen.free_bytes() == 16 * GIB
        assert [(one.uuid, one.free_bytes) for one in reading.cards] == [
            ("GPU-b", 70 * GIB),
            ("GPU-a", 16 * GIB),
        ]
        assert reading.processes == (
            CardProcess("GPU-a", 7, 3 * GIB, "other"),
            CardProcess("GPU-a", 101, 50 * GIB, "engine"),
            CardProcess("GPU-a", 102, 10 * GIB, "engine"),
        )
        assert nvml.open == 0

    def test_its_share_of_the_machines_memory_is_told_as_well(self, root):
        """An engine on a GPU that grows in RAM is seen there."""
        write(root, {"proc/101/smaps_rollup": rollup(700, 900)})
        nvml = FakeNvml({"GPU-a": GIB}, {"GPU-a": self.PROCESSES})
        reading = watch(root, card(), nvml).look(ENGINE)
        assert reading.engine_host_bytes == 700 * MIB
        assert reading.host_free_bytes == 12 * GIB

    def test_an_engine_that_has_not_reached_the_card_holds_nothing(self, root):
        """While it starts, none of its processes is there yet: 0, which is known."""
        nvml = FakeNvml({"GPU-a": 70 * GIB}, {"GPU-a": ((7, 9 * GIB),)})
        reading = watch(root, card(), nvml).look(ENGINE)
        assert (reading.engine_bytes, reading.others_bytes) == (0, 10 * GIB)

    def test_what_the_driver_does_not_say_is_unknown(self, root):
        """WSL: the processes, and not what they hold. The engine's is unknown, not 0, and others' too."""
        nvml = FakeNvml({"GPU-a": GIB}, {"GPU-a": ((101, None), (102, 5 * GIB))})
        reading = watch(root, card(), nvml).look(ENGINE)
        assert reading.engine_bytes is reading.others_bytes is None
        assert [one.used_bytes for one in reading.processes] == [None, 5 * GIB]

    @pytest.mark.parametrize("listed", [(), ((101, 5 * GIB),), ((31_337, 5 * GIB),)])
    def test_in_a_container_it_is_unknown(self, root, listed):
        """The driver lists the machine's pids, or nobody; an equal number is another process."""
        namespace(root, 4026532500)
        nvml = FakeNvml({"GPU-a": GIB}, {"GPU-a": listed})
        seen = watch(root, card(), nvml)
        reading = seen.look(ENGINE)
        assert reading.engine_bytes is reading.others_bytes is seen.engine_bytes(ENGINE) is None
        assert {one.owner for one in reading.processes} <= {"unknown"}
        assert reading.free_bytes == GIB

    def test_without_a_namespace_to_read_it_is_unknown(self, root):
        """No /proc/self/ns: whose pids they are cannot be told."""
        (root / "proc/self/ns/pid").unlink()
        nvml = FakeNvml({"GPU-a": GIB}, {"GPU-a": self.PROCESSES})
        assert watch(root, card(), nvml).engine_bytes(ENGINE) is None

    def test_no_engine_holds_nothing_in_a_container_too(self, root):
        """Where nobody runs there is nothing to be told apart."""
        namespace(root, 4026532500)
        reading = watch(root, card(), FakeNvml({"GPU-a": 60 * GIB})).look(None)
        assert (reading.engine_bytes, reading.others_bytes) == (0, 20 * GIB)

    def test_instances_of_one_process_are_added(self, root):
        """With MIG a process is listed once an instance; the page needs one figure each."""
        nvml = FakeNvml({"GPU-a": GIB}, {"GPU-a": ((101, GIB), (101, 2 * GIB))})
        reading = watch(root, card(), nvml).look(ENGINE)
        assert reading.processes == (CardProcess("GPU-a", 101, 3 * GIB, "engine"),)

    @pytest.mark.parametrize("broken", ["init", "memory"])
    def test_a_card_that_is_lost_is_unknown(self, root, broken):
        """The driver answers no more: nothing is known, nothing raised, and no CPU put in its place."""
        nvml = FakeNvml({"GPU-a": GIB}, broken=[broken])
        seen = watch(root, card(), nvml)
        reading = seen.look(ENGINE)
        assert reading.total_bytes is reading.free_bytes is reading.engine_bytes is None
        assert reading.others_bytes is None
        assert reading.cards == ()
        assert reading.host_free_bytes == 12 * GIB
        assert seen.free_bytes() == 0
        assert nvml.open == 0

    @pytest.mark.parametrize("broken", ["handle", "processes"])
    def test_a_driver_that_names_no_processes(self, root, broken):
        """Total and free are known, whose it is not."""
        nvml = FakeNvml({"GPU-a": GIB}, {"GPU-a": self.PROCESSES}, broken=[broken])
        seen = watch(root, card(), nvml)
        reading = seen.look(ENGINE)
        assert (reading.free_bytes, reading.processes) == (GIB, ())
        assert reading.engine_bytes is reading.others_bytes is seen.engine_bytes(ENGINE) is None
        assert nvml.open == 0

    def test_another_card_never_stands_in(self, root):
        """The planned card is hidden or gone: unknown, however empty another one is."""
        nvml = FakeNvml({"GPU-a": GIB, "GPU-b": 70 * GIB})
        hidden = watch(root, card(), nvml, environ={"CUDA_VISIBLE_DEVICES": "GPU-b"})
        assert hidden.look(None).free_bytes is None
        assert [one.uuid for one in hidden.look(None).cards] == ["GPU-b"]

    def test_without_nvml_nothing_is_known(self, root):
        """No pynvml any more: as if the card were lost."""
        seen = watch(root, card(), None)
        assert seen.look(ENGINE).engine_bytes is seen.look(ENGINE).free_bytes is None
        assert seen.engine_bytes(ENGINE) is None
