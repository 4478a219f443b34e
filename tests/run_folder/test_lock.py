"""One process for each folder."""

import json
import os
import socket
import subprocess
import sys

import psutil
import pytest

from hf_evidenceflow.run_folder.lock import OWNER_NAME, FolderInUseError, Owner, folder_owner, hold_folder


def note(folder, **changes):
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()}
    (folder / OWNER_NAME).write_text(json.dumps(owner | changes))


def test_a_second_holder_is_told_who_the_first_is(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_evidenceflow.run_folder.lock.WAIT_SECONDS", 0.1)
    with hold_folder(tmp_path):
        assert folder_owner(tmp_path) == Owner.this_process()
        who = f"process {os.getpid()} on {socket.gethostname()}, started 20"
        with pytest.raises(FolderInUseError, match=who), hold_folder(tmp_path):
            pass
    assert folder_owner(tmp_path) is None


def test_a_folder_is_free_after_an_error(tmp_path):
    with pytest.raises(KeyError), hold_folder(tmp_path):
        raise KeyError
    with hold_folder(tmp_path):
        pass


@pytest.mark.parametrize("changes", [{"started": 5.0}, {"pid": 2**22 + 7}, {"host": "elsewhere"}])
def test_the_note_of_a_dead_process_is_taken_over(tmp_path, changes):
    note(tmp_path, **changes)
    assert folder_owner(tmp_path) is None
    with hold_folder(tmp_path):
        assert folder_owner(tmp_path).pid == os.getpid()


def test_without_a_lock_that_works_the_note_of_a_live_process_counts(tmp_path):
    parent = psutil.Process(os.getppid())
    note(tmp_path, pid=parent.pid, started=parent.create_time())
    with pytest.raises(FolderInUseError, match=f"process {parent.pid} "), hold_folder(tmp_path):
        pass


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_holder_frees_the_folder(tmp_path):
    # By this name the package registers no models, which takes seconds
    code = "import sys, time; sys.argv[0] = 'hf-evidenceflow'\n"
    code += "from hf_evidenceflow.run_folder.lock import hold_folder\n"
    code += "with hold_folder(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    assert folder_owner(tmp_path).pid == child.pid
    child.kill()
    child.wait()
    assert folder_owner(tmp_path) is None
    with hold_folder(tmp_path):
        pass
