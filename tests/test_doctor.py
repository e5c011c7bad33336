"""doctor: what is missing is named with its consequence, and nothing else is claimed."""

import dataclasses

from gmai_lib import config, doctor


def test_environment_names_every_declared_package_and_this_machine():
    found = doctor.environment()
    assert found["packages"]["torch"] and found["packages"]["deepspeed"]
    assert set(found["packages"]) == set(doctor.declared_packages())
    assert found["machine"]["cores"] >= 1 and found["machine"]["memory_gb"] > 0


def test_plan_says_what_a_missing_package_costs():
    found = doctor.environment()
    found["packages"]["bitsandbytes"] = None
    found["packages"]["torch"] = None
    used = {r["what"]: r["used"] for r in doctor.plan(found, config.load("mini"))}
    assert used["bitsandbytes"] == "NOT available: notebook 12 refuses to quantise"
    assert used["torch"] == "NOT available: nothing runs"
    assert "deepspeed" not in used


def test_plan_uses_gpus_where_there_are_some_and_says_gloo_where_not():
    found = doctor.environment() | {"devices": []}
    profile = dataclasses.replace(config.load("mini"), ranks=2)
    rows = {r["what"]: r for r in doctor.plan(found, profile)}
    assert rows["device"]["used"] == "cpu"
    assert rows["training processes"]["used"].startswith("2 DeepSpeed ranks over gloo")


def test_main_exits_1_and_lists_what_is_missing(monkeypatch, capsys):
    real = doctor.installed_version
    monkeypatch.setattr(
        doctor, "installed_version", lambda name: None if name == "deepspeed" else real(name)
    )
    assert doctor.main() == 1
    shown = capsys.readouterr().out
    assert "missing: deepspeed" in shown and "stages 07 to 09 refuse to start" in shown


def test_version_differences_ignore_the_build_suffix():
    assert doctor.differing_versions({"torch": "2.13.0+cpu", "numpy": None, "unpinned": "1"}) == []
    assert doctor.differing_versions({"torch": "2.11.0"}) == [
        {"package": "torch", "pinned": "2.13.0", "installed": "2.11.0"}
    ]


def test_installed_version_is_none_for_what_is_not_there():
    assert doctor.installed_version("no-such-package-here") is None
