"""Every role keeps the shape that operators and the playbooks rely on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from repository import PLAYBOOKS, ROLES, ROOT, load, specs, task_files, tasks

GROUPS = set(load(ROOT / "inventories" / "lab" / "hosts.yml")["all"]["children"])


def by_name(path: Path) -> str:
    return path.name


@pytest.fixture(params=ROLES, ids=by_name)
def role(request: pytest.FixtureRequest) -> Path:
    return request.param  # type: ignore[no-any-return]


def test_every_designed_role_exists() -> None:
    """A renamed or forgotten role is noticed here, not on a site."""
    expected = {
        "base_host", "site_ca", "container_host", "cassandra_node", "ingest_container", "load_balancer",
        "sensor_gateway", "monitor", "node_metrics", "service_bundle", "support_bundle",
    }  # fmt: skip
    assert expected <= {path.name for path in ROLES}


def test_role_is_for_the_system_that_hosts_have(role: Path) -> None:
    """One that claims another cannot keep it: base_host, which comes first, is for Debian 12 alone."""
    platforms = load(role / "meta" / "main.yml")["galaxy_info"]["platforms"]
    assert [{"name": "Debian", "versions": ["bookworm"]}] == platforms
    assert ["debian 12"] == (load(role / "vars" / "main.yml") or {}).get(
        "__cassandra_node_systems", ["debian 12"]
    )


def test_defaults_are_in_the_specs_with_the_same_value(role: Path) -> None:
    """The documentation generated from the specs is true."""
    defaults = load(role / "defaults" / "main.yml") or {}
    options = {name: option for entry in specs(role).values() for name, option in entry.items()}
    assert sorted(set(defaults) - set(options)) == []
    templated = re.compile(r"\{[{%]")
    for name, value in defaults.items():
        if "default" in options[name] and not templated.search(str(value)):
            assert value == options[name]["default"], name


def test_spec_options_are_required_or_have_a_default(role: Path) -> None:
    """An option that is neither would fail in the middle of a run with "undefined"."""
    defaults = load(role / "defaults" / "main.yml") or {}
    for entry, options in specs(role).items():
        for name, option in options.items():
            assert option.get("required") or name in defaults or "default" in option, f"{entry}: {name}"


def test_spec_options_are_described_and_typed(role: Path) -> None:
    """docs/variables.md has a sentence for each."""
    for entry, options in specs(role).items():
        for name, option in options.items():
            assert option.get("description"), f"{entry}: {name}"
            assert option.get("type"), f"{entry}: {name}"


def test_variables_carry_the_roles_name(role: Path) -> None:
    """Two roles in one play never share a variable by accident."""
    names = set(load(role / "defaults" / "main.yml") or {})
    names |= {name for options in specs(role).values() for name in options}
    assert sorted(name for name in names if not name.startswith(f"{role.name}_")) == []


def test_secrets_are_marked_no_log(role: Path) -> None:
    """A variable that holds a secret never reaches a log through the argument check."""
    for options in specs(role).values():
        for name, option in options.items():
            # A number of tokens (cassandra_node_num_tokens) is no secret.
            if option["type"] != "int" and re.search(r"_(password|passwords|token|tokens|secret)$", name):
                assert option.get("no_log") is True, name


def test_no_group_name_in_a_role(role: Path) -> None:
    """Roles take lists; only playbooks know groups."""
    for path in role.rglob("*"):
        if path.is_file() and path.suffix in {".yml", ".j2", ".py"}:
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\bgroups\s*[\[.]", text), path
            assert "ansible_play_hosts" not in text, path


def test_tasks_are_named_and_errors_are_not_ignored(role: Path) -> None:
    """What scrolls by at 3 a.m. can be read, and a failure stops."""
    for path in task_files(role):
        for task in tasks(path):
            assert task.get("name"), f"{path}: {task}"
            assert "ignore_errors" not in task, f"{path}: {task['name']}"
            # Where a play has any_errors_fatal, a host that is not reached ends it in spite of the ignoring.
            if task.get("ignore_unreachable"):
                assert task.get("any_errors_fatal") is False, f"{path}: {task['name']}"


def test_phases_are_tagged_with_the_roles_name(role: Path) -> None:
    """`--tags <role>_<phase>` runs one phase."""
    for task in tasks(role / "tasks" / "main.yml"):
        for tag in [task.get("tags")] if isinstance(task.get("tags"), str) else task.get("tags") or []:
            assert tag == "always" or tag.startswith(role.name), f"{role.name}: {tag}"


def test_role_has_a_readme_that_names_it(role: Path) -> None:
    """A person who opens the folder learns what it does."""
    assert role.name in (role / "README.md").read_text(encoding="utf-8")


def test_a_new_certificate_is_served_whatever_comes_after_it() -> None:
    """Handlers run at the end of site_ca: on a first run before the services that they reload are there."""
    leaf = ROOT / "roles" / "site_ca" / "tasks" / "leaf.yml"
    assert load(leaf)[-1]["ansible.builtin.meta"] == "flush_handlers"
    listening = [
        (role.name, handler)
        for role in ROLES
        for handler in load(role / "handlers" / "main.yml") or []
        if handler.get("listen") == "host certificate changed" and role.name != "site_ca"
    ]
    assert {"cassandra_node", "load_balancer", "sensor_gateway"} <= {name for name, _ in listening}
    for name, handler in listening:
        assert re.search(r"Could not find the requested service|is-active", str(handler)), name


def test_no_secret_stands_on_a_command_line(role: Path) -> None:
    """A task's environment does: Ansible writes it before the command that it runs on the host."""
    for path in task_files(role):
        for task in tasks(path):
            given = [task.get("environment")]
            for module in ("ansible.builtin.command", "ansible.builtin.shell"):
                words = task.get(module)
                given += [words.get("argv"), words.get("cmd")] if isinstance(words, dict) else [words]
            assert not re.search(r"\{\{[^}]*_(password|token|secret)s?\b", str(given)), (
                f"{path}: {task['name']}"
            )


def test_modes_are_quoted(role: Path) -> None:
    """An unquoted 0644 is another number."""
    for path in role.rglob("*.yml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not re.match(r"\s*mode:\s*[0-9]", line), f"{path}: {line}"


def test_every_refusal_id_is_documented_and_tested() -> None:
    """An ID on the screen leads to a page, and some test shows the refusal."""
    pattern = re.compile(r"\b(?:BH|BU|CA|CH|CN|CO|IC|LB|MO|NM|OS|SB|SG)-\d{3}\b")
    used = {
        found
        for folder in [*ROLES, ROOT / "playbooks"]
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in {".yml", ".py", ".j2"}
        for found in pattern.findall(path.read_text(encoding="utf-8"))
    }
    page = (ROOT / "docs" / "refusals.md").read_text(encoding="utf-8")
    assert sorted(used ^ set(re.findall(rf"^\| ({pattern.pattern}) \|", page, re.MULTILINE))) == []
    files = [path for path in (ROOT / "molecule").rglob("*") if path.suffix in {".py", ".yml"}]
    # The docstring of a module says what its tests are about, not that one of them shows it.
    tests = "\n".join(
        text.split('"""', 2)[-1] if text.startswith('"""') else text
        for text in (path.read_text(encoding="utf-8") for path in files)
    )
    untested = sorted(used - set(pattern.findall(tests)))
    assert untested == [], f"no test shows these refusing: {untested}"


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=by_name)
def test_plays_are_named(playbook: Path) -> None:
    """Every play tells on the screen what it does."""
    for play in load(playbook):
        assert play.get("name"), playbook


def test_playbooks_hold_only_groups_that_the_inventory_contract_names() -> None:
    """A group that no inventory has would silently run on nothing."""
    for playbook in PLAYBOOKS:
        for found in re.findall(r"groups\[['\"](\w+)['\"]\]", playbook.read_text(encoding="utf-8")):
            assert found in GROUPS | {"all"}, f"{playbook.name}: {found}"


def test_collections_of_requirements_are_those_of_the_ansible_package() -> None:
    """A bare ansible-core with requirements.yml runs what we test with."""
    import ansible_collections

    base = Path(next(iter(ansible_collections.__path__)))
    for collection in load(ROOT / "requirements.yml")["collections"]:
        namespace, name = collection["name"].split(".")
        manifest = load(base / namespace / name / "MANIFEST.json")
        assert manifest["collection_info"]["version"] == collection["version"], collection["name"]
