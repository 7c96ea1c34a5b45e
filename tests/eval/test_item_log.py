"""ItemLog: finished items survive a kill, for the same run only, and no others are there."""

import json
import zlib

import pytest

from eval.common.item_log import ItemLog

SETTINGS = {"benchmark": "icl", "seed": 1}


def log_of(folder, **settings):
    return ItemLog(folder / "results.jsonl", {**SETTINGS, **settings})


def path_of(folder):
    (path,) = (folder / "results.jsonl.items").iterdir()
    return path


def test_items_are_there_for_the_next_process(tmp_path):
    log = log_of(tmp_path)
    assert log.done == {}
    log.add("0", {"right": [True, False], "seconds": 0.1})
    log.add("1", {"right": []})
    expected = {"0": {"right": [True, False], "seconds": 0.1}, "1": {"right": []}}
    assert log.done == expected
    del log
    assert log_of(tmp_path).done == expected
    assert json.loads(path_of(tmp_path).read_text().splitlines()[0]) == SETTINGS


def test_every_line_is_on_disk_at_once(tmp_path):
    log = log_of(tmp_path)
    log.add("0", {"n": 1})
    checksum = zlib.crc32(b'{"item": "0", "n": 1}')
    assert [json.loads(line) for line in path_of(tmp_path).read_text().splitlines()] == [
        SETTINGS,
        {"item": "0", "n": 1, "crc32": checksum},
    ]


@pytest.mark.parametrize("torn", [b"{", b'{"item": "1", "n": 2}', b'{"item": "1", "n'])
def test_a_line_that_was_cut_off_is_dropped(tmp_path, torn):
    log = log_of(tmp_path)
    log.add("0", {"n": 1})
    del log
    path = path_of(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    log = log_of(tmp_path)
    assert log.done == {"0": {"n": 1}}
    assert path.read_bytes() == whole
    log.add("1", {"n": 2})
    del log
    assert log_of(tmp_path).done == {"0": {"n": 1}, "1": {"n": 2}}


def test_a_kill_before_the_first_line_was_whole(tmp_path):
    del_me = log_of(tmp_path)
    del del_me
    path = path_of(tmp_path)
    path.write_bytes(path.read_bytes()[:5])
    log = log_of(tmp_path)
    log.add("0", {"n": 1})
    del log
    assert log_of(tmp_path).done == {"0": {"n": 1}}


def test_another_setting_is_another_run(tmp_path):
    log_of(tmp_path).add("0", {"n": 1})
    assert log_of(tmp_path, seed=2).done == {}
    assert len(list((tmp_path / "results.jsonl.items").iterdir())) == 2


def test_two_processes_do_not_share_a_run(tmp_path):
    log = log_of(tmp_path)
    with pytest.raises(ValueError, match="another process is at this very run"):
        log_of(tmp_path)
    assert log.done == {}


@pytest.mark.parametrize("foreign", [b"oops", b"[]", b'{"item": "0"}', b'{"item": "0", "n": 2}'])
def test_a_foreign_line_is_named(tmp_path, foreign):
    log_of(tmp_path).add("0", {"n": 1})
    with open(path_of(tmp_path), "ab") as file:
        file.write(foreign + b"\n")
    with pytest.raises(ValueError, match="line 3: not a finished item"):
        log_of(tmp_path)


def test_a_line_that_was_changed_is_named(tmp_path):
    log_of(tmp_path).add("0", {"n": 1, "said": ["\u4e2d"], "seconds": 0.1})
    assert log_of(tmp_path).done["0"]["said"] == ["\u4e2d"]
    path = path_of(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"n": 1', b'"n": 2'))
    with pytest.raises(ValueError, match="line 2: not a finished item"):
        log_of(tmp_path)


def test_without_results_nothing_is_kept(tmp_path):
    log = ItemLog(None, SETTINGS)
    log.add("0", {"n": 1})
    assert log.done == {"0": {"n": 1}}
    assert list(tmp_path.iterdir()) == []
