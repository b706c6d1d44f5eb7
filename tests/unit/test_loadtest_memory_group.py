"""The kernel's files of a control group, read and written as either version has them."""

import os
from contextlib import ExitStack

import pytest

from loadtest.memory_group import V1, V2, MemoryGroup, NoMemoryGroup, memory_group, places

V1_STAT = "rss 4096\nshmem 0\ncache 900000\ntotal_rss 8192\ntotal_shmem 1000\ntotal_cache 900000\n"
V2_STAT = "anon 8192\nfile 900000\nkernel 5000\nshmem 1000\nfile_mapped 700\n"


@pytest.fixture
def group_of(tmp_path):
    """Makes a group whose folder has these files; the home of this process is beside them."""
    with ExitStack() as opened:

        def make(version, *, mode="r+b", **files):
            (tmp_path / "home").mkdir()
            for name, text in {version.peak: "0", "cgroup.procs": "", **files}.items():
                (tmp_path / name).write_text(text)
            peak = opened.enter_context((tmp_path / version.peak).open(mode, buffering=0))
            return MemoryGroup(version, folder=tmp_path, home=tmp_path / "home", peak=peak)

        yield make


def machine(root, cgroups, *folders):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroups)
    for folder in folders:
        (root / folder).mkdir(parents=True)
    return root


@pytest.mark.parametrize(("version", "stat"), [(V1, V1_STAT), (V2, V2_STAT)])
def test_what_cannot_be_dropped_is_anonymous_and_shared(group_of, version, stat):
    """Page cache is not in it; in v1 the groups below are."""
    group = group_of(version, **{"memory.stat": stat})
    assert group.kept_bytes() == 9192


@pytest.mark.parametrize(
    ("version", "events"),
    [
        (V1, "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
        (V2, "low 0\nhigh 0\nmax 812\noom 5\noom_kill 3\noom_group_kill 0\n"),
    ],
)
def test_kills_are_processes_and_not_alarms(group_of, version, events):
    """Only what was really killed counts."""
    assert group_of(version, **{version.events: events}).kills() == 3


def test_a_kernel_that_does_not_count_has_killed_nobody(group_of):
    """A missing file or field is read as zero."""
    assert group_of(V1).kills() == 0


@pytest.mark.parametrize("version", [V1, V2])
def test_the_peak_is_read_again_each_time(tmp_path, group_of, version):
    """The file stays open; the kernel's figure moves on."""
    group = group_of(version)
    (tmp_path / version.peak).write_text("4294967296\n")
    assert group.peak_bytes() == 4294967296
    assert group.begin_peak()
    assert (tmp_path / version.peak).read_text().startswith("0")


def test_a_peak_that_cannot_be_forgotten_is_said_to_stay(group_of):
    """Older kernels let nobody write to it."""
    group = group_of(V2, mode="rb", **{V2.peak: "77"})
    assert not group.begin_peak()
    assert group.peak_bytes() == 77


def test_children_are_born_in_the_group_and_we_come_back(tmp_path, group_of):
    """This process is in the group inside of the block, and in its own after it, whatever happens."""
    group, inside = group_of(V1), []

    class Failed(Exception): ...

    def start():
        with group.around_children():
            inside.append((group.pids(), (tmp_path / "home" / "cgroup.procs").exists()))
            raise Failed

    with pytest.raises(Failed):
        start()
    assert inside == [([os.getpid()], False)]
    assert (tmp_path / "home" / "cgroup.procs").read_text() == str(os.getpid())


def test_v1_is_tried_from_its_mount_down_to_our_own_group(tmp_path):
    """Other controllers and a second hierarchy without memory are passed over."""
    root = machine(
        tmp_path,
        "5:cpu,cpuacct:/x\n4:memory:/a/b\n1:name=systemd:/x\n0::/x\n",
        "sys/fs/cgroup/memory/a/b",
    )
    mount = root / V1.mount
    own = mount / "a" / "b"
    wanted = [(V1, mount, own), (V1, mount / "a", own), (V1, own, own)]
    assert list(places(root)) == wanted


def test_v2_is_tried_where_memory_is_given_to_children(tmp_path):
    """A group whose subtree_control has no memory can limit nothing below it."""
    root = machine(tmp_path, "0::/user/session\n", "sys/fs/cgroup/user/session")
    mount = root / V2.mount
    (mount / "cgroup.subtree_control").write_text("cpu pids\n")
    (mount / "user" / "cgroup.subtree_control").write_text("memory pids\n")
    assert list(places(root)) == [(V2, mount / "user", mount / "user" / "session")]


def test_a_path_of_the_host_is_our_own_mount(tmp_path):
    """Inside of a container the group's path may be the host's."""
    root = machine(tmp_path, "4:memory:/docker/1f2e\n", "sys/fs/cgroup/memory")
    mount = root / V1.mount
    assert list(places(root)) == [(V1, mount, mount)]


def test_without_a_controller_it_says_what_it_takes(tmp_path):
    """Nothing is run without the limit that the table would claim."""
    root = machine(tmp_path, "0::/\n", "sys/fs/cgroup")
    with (
        pytest.raises(NoMemoryGroup, match="memory controller is nowhere"),
        memory_group(1 << 30, root=root),
    ):
        pass
