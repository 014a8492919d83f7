"""Methods of other packages by their entry points, what of them is refused, and how."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from digits_world import World, quiet, right, same_trace, trace
from torch import nn

import fastforget as ff
from fastforget.__main__ import main
from fastforget._bench import experiment, experiment_cells, experiment_page
from fastforget.methods import engine, plugs, registry
from fastforget.methods.registry import METHODS

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "tests" / "third_party"
CLASS = 3
OPTIONS = {"steps": 6, "batch_size": 16}


def declare(folder: Path, distribution: str, version: str, points: dict[str, str], **modules: str) -> None:
    """A package as an installer leaves it: its modules, and what it declares."""
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[{plugs.GROUP}]\n{lines}")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that packages are installed into; afterwards nothing of them is left."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(plugs, "_WARNED", set())
    before = set(sys.modules)
    yield site
    for name in set(sys.modules) - before:
        if str(site) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


@pytest.fixture
def label_flip(folder, monkeypatch):
    """The worked example, installed."""
    monkeypatch.delitem(sys.modules, "label_flip", raising=False)
    declare(folder, "label-flip", "0.2.0", {"label_flip": "label_flip:LabelFlip"}, label_flip=(EXAMPLE / "label_flip.py").read_text())


@pytest.fixture(scope="module")
def world():
    return World()


def sets(world: World) -> dict:
    return {"forget": world.part(world.train, [CLASS], True), "retain": world.part(world.train, [CLASS], False), "test": world.test}


METHOD = """
class Method:
    name, scope = {name!r}, "samples"

    def receipt(self):
        return {{}}

    def run(self, task):
        return {result}
"""


def method(name: str, result: str = "{}") -> str:
    return METHOD.format(name=name, result=result)


# ------------------------------------------------------------------ found


def test_a_name_that_is_not_ours_is_found_and_runs(label_flip, world):
    net = world.net("mlp")
    before = trace(net)
    result = quiet(net, "label_flip", **OPTIONS, classes=[CLASS], **sets(world), seed=2, progress=False)
    assert result.receipt["method"] == "label_flip" and result.receipt["options"] == {**OPTIONS, "rate": 0.02, "push": 0.3}
    assert result.receipt["method_from"] == {"distribution": "label-flip", "version": "0.2.0", "object": "label_flip:LabelFlip"}
    assert result.cost.passes >= 6 * 2 * 16 and result.receipt["cost"]["phases"]["flip"]["trained"] == 6 * 2 * 16
    assert same_trace(before, trace(net))
    # an instance is the same run, and its package is named as well
    flip = importlib.import_module("label_flip").LabelFlip(**OPTIONS)
    again = quiet(net, flip, classes=[CLASS], **sets(world), seed=2, progress=False)
    assert again.receipt == result.receipt


def test_the_example_forgets(label_flip, world):
    result = quiet(world.net("mlp"), "label_flip", classes=[CLASS], **sets(world), progress=False)
    assert result.forgot, result.why
    assert right(result.model, world.part(world.test, [CLASS], False)) > 0.95


def test_nothing_is_looked_up_or_imported_before_a_name_is_asked_for(label_flip, folder):
    code = """
import sys, importlib.metadata, torch  # torch looks for its own
def fail(*_, **__): raise AssertionError("looked up")
importlib.metadata.entry_points = fail
import fastforget as ff
x, y = torch.randn(40, 4), torch.arange(40) % 4
net = torch.nn.Linear(4, 4)
ff.unlearn(net, "none", classes=[0], retain=(x[y > 0], y[y > 0]), forget=(x[y == 0], y[y == 0]), progress=False)
assert not {"label_flip", "fastforget.adapters"} & set(sys.modules)
assert ff.adapters.unlearning("none") and "fastforget.adapters" in sys.modules
try:
    ff.unlearn(net, "label_flip", classes=[0], retain=(x[y > 0], y[y > 0]), progress=False)
except AssertionError as error:
    print(error)
"""
    env = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "looked up"


def test_available_lists_names_origins_and_requests(label_flip, folder):
    declare(folder, "broken", "1.0", {"broken": "broken_module:Method"}, broken_module="raise RuntimeError('no licence')")
    rows = {row.name: row for row in ff.methods.available()}
    assert list(rows) == [*METHODS, "broken", "label_flip"]
    assert rows["unsir"] == ff.methods.Available("unsir", f"fastforget {ff.__version__}", ("classes",))
    assert rows["label_flip"] == ff.methods.Available("label_flip", "label-flip 0.2.0", ("classes", "samples"))
    assert rows["broken"].serves == () and "RuntimeError: no licence" in str(rows["broken"])
    assert registry.names() == ["auto", *rows]


def test_an_instance_from_nowhere_says_so(world):
    here: dict = {}
    exec(method("here"), here)
    result = quiet(world.net("mlp"), here["Method"](), classes=[CLASS], **sets(world), progress=False)
    assert result.receipt["method_from"] == {"distribution": None, "version": None, "object": "builtins:Method"}


def test_what_is_optional_may_be_missing(folder):
    """Word numbers: a method that says nothing of noise doesn't learn any."""
    declare(folder, "least", "1", {"least": "least_method:Method"}, least_method=method("least", "{'own': [1, 2.5, None]}"))
    words, topic = torch.randint(0, 50, (60, 8)), torch.arange(60) % 4
    net, keep = nn.Sequential(nn.EmbeddingBag(50, 8), nn.Linear(8, 4)), topic != 0
    result = quiet(net, "least", classes=[0], forget=(words[~keep], topic[~keep]), retain=(words[keep], topic[keep]), progress=False)
    assert result.receipt["own"] == [1, 2.5, None] and result.receipt["method_from"]["distribution"] == "least"


# ------------------------------------------------------------------ refused

KEPT = "class Method:\n    name, scope = 'kept', 'samples'\n"
REFUSED = {
    "not there": ("gone", "gone:Method", {}, ImportError, "'gone' of odd 1.0 \\(gone:Method\\) can't be imported: ModuleNotFoundError"),
    "no such name": ("absent", "absent:Nothing", {"absent": ""}, ImportError, "can't be imported: AttributeError: .*Nothing"),
    "fails": ("fails", "fails:M", {"fails": "1 / 0"}, ImportError, "of odd 1.0 .*: ZeroDivisionError: .*Mend or uninstall that package"),
    "a number": ("number", "number:M", {"number": "M = 3"}, TypeError, "of odd 1.0 .*: got int; accepted is a class"),
    "no method": ("kept", "kept_m:Method", {"kept_m": KEPT}, TypeError, r"odd 1.0 .*: Method is no method, it lacks run\(\), receipt\(\);"),
    "nothing": ("dict", "dict_m:M", {"dict_m": "M = dict"}, TypeError, r"lacks run\(\), receipt\(\), name \(text\), scope \(\"classes\""),
    "a class": ("kind", "kind:make", {"kind": method("kind") + "make = lambda: Method"}, TypeError, r"got a class; accepted .* Method\(\)"),
    "other name": ("one", "one_m:Method", {"one_m": method("two")}, TypeError, "'one' of odd 1.0 .* is called 'two' by its own attribute"),
}


@pytest.mark.parametrize(("name", "value", "modules", "error", "text"), REFUSED.values(), ids=list(REFUSED))
def test_what_is_no_method_is_refused_by_name_and_package(folder, world, name, value, modules, error, text):
    declare(folder, "odd", "1.0", {name: value}, **modules)
    net = world.net("mlp")
    before = trace(net)
    with pytest.raises(error, match=text):
        quiet(net, name, classes=[CLASS], inplace=True, **sets(world), progress=False)
    assert same_trace(before, trace(net))
    # ours don't notice
    assert quiet(net, "none", classes=[CLASS], **sets(world), progress=False).receipt["method"] == "none"
    assert next(row for row in ff.methods.available() if row.name == name).problem


def test_an_unknown_name_is_refused_with_all_that_are_known(label_flip, world):
    with pytest.raises(ValueError, match=r"got 'unser'; accepted are 'auto', 'sweep', .*'none', 'label_flip' or an instance"):
        ff.unlearn(world.net("mlp"), "unser", classes=[CLASS], **sets(world))


def test_a_name_of_ours_stays_ours_and_the_package_is_named_once(folder, world):
    declare(folder, "usurper", "3.1", {"none": "usurper:Method", "auto": "usurper:Method", "fine": "fine_m:Method"}, fine_m=method("fine"))
    with pytest.warns(UserWarning, match=r"usurper 3.1 declares the method '(none|auto)', which is fastforget's own name") as caught:
        assert quiet(world.net("mlp"), "fine", classes=[CLASS], **sets(world), progress=False).receipt["method"] == "fine"
    assert len(caught) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry.names() == ["auto", *METHODS, "fine"]
    assert "method_from" not in quiet(world.net("mlp"), "none", classes=[CLASS], **sets(world), progress=False).receipt


def test_two_packages_with_one_name_are_both_named(folder):
    declare(folder, "first-one", "1", {"same": "first:Method"}, first=method("same"))
    declare(folder, "second-one", "2", {"same": "second:Method"}, second=method("same"))
    with pytest.raises(ValueError) as caught:
        registry.method_of("same", {})
    assert "first-one 1 (first:Method)" in str(caught.value) and "second-one 2 (second:Method)" in str(caught.value)
    assert "first" not in sys.modules and "second" not in sys.modules


@pytest.mark.parametrize(
    ("result", "error", "text"),
    [
        ("None", TypeError, "Method.run returned NoneType; accepted is a dict"),
        ("{'verdict': {'forgot': True}, 'seed': 1}", ValueError, "returned 'seed', 'verdict', which ff.unlearn puts into the receipt"),
        ("{'weights': next(task.model.parameters())}", TypeError, "what a receipt can't hold: Object of type Parameter"),
    ],
)
def test_what_a_run_returns_may_not_stand_for_what_was_measured(folder, world, result, error, text):
    declare(folder, "says", "1", {"says": "says:Method"}, says=method("says", result))
    net = world.net("mlp")
    before = trace(net)
    with pytest.raises(error, match=text):
        quiet(net, "says", classes=[CLASS], inplace=True, **sets(world), progress=False)
    assert same_trace(before, trace(net))


# ------------------------------------------------------------------ command line, table, page


@pytest.mark.slow
def test_the_demo_runs_it_beside_ours(label_flip, tmp_path, capsys):
    out, figures = tmp_path / "out", tmp_path / "figures.json"
    options = ["--data", "digits", "--net", "mlp", "--epochs", "3", "--no-progress", "--out", str(out), "--json", str(figures)]
    assert main(["demo", "--method", "label_flip", "--beside", "sweep", *options]) in (0, 1)
    receipt = json.loads((out / "receipt.json").read_text())
    assert receipt["method"]["method_from"]["distribution"] == "label-flip"
    assert "label_flip" in figures.read_text() and "label_flip" in (out / "report.html").read_text()
    assert main(["verify", str(out / "receipt.json"), "--model", str(out / "unlearned.pt")]) == 0, capsys.readouterr().out


def test_the_demo_refuses_a_broken_one_before_it_trains(folder, monkeypatch, capsys):
    declare(folder, "broken", "1.0", {"broken": "broken_module:Method"}, broken_module="raise RuntimeError('no licence')")
    monkeypatch.setattr("fastforget.demo.run.load", lambda *_: pytest.fail("went on"))
    with pytest.raises(SystemExit) as exit:
        main(["demo", "--data", "digits", "--beside", "broken"])
    assert exit.value.code == 2 and "broken 1.0 (broken_module:Method) can't be imported" in capsys.readouterr().err


def test_the_experiment_has_its_row(label_flip, monkeypatch):
    args = experiment.parser().parse_args(["--data", "digits", "--seeds", "0", "--scenario", "class", "--method", "original", "label_flip"])
    problem = types.SimpleNamespace(name="digits", nets={"cnn": None})
    assert list(experiment.cells(args, problem)) == [("cnn", "class", 0, ["original", "label_flip"])]
    plain = experiment.parser().parse_args(["--data", "digits", "--seeds", "0", "--scenario", "class"])
    assert "label_flip" not in next(experiment.cells(plain, problem))[3]
    run = experiment_cells.Run.__new__(experiment_cells.Run)
    run.cell, run.problem, run.scenario = True, types.SimpleNamespace(again=True), "class"
    monkeypatch.setattr(run, "_unlearned", lambda *asked: asked)
    assert run.row("label_flip") == ("label_flip", "label_flip", {})
    row = {"data": "digits", "net": "cnn", "scenario": "class", "seed": 0}
    rows = [row | {"method": name} for name in ("label_flip", "sweep", "original")]
    listed = [line.split("|")[4].strip() for line in experiment_page.table(rows)[2:]]
    assert listed == ["original", "sweep", "label_flip"] == sorted(listed, key=lambda name: experiment._place(name, experiment.EVERY))


def test_the_page_shows_the_example_and_every_public_name():
    page = (ROOT / "docs" / "plugins.md").read_text()
    assert len(page.splitlines()) <= 120
    assert re.findall(r"```python\n(.*?)```", page, re.DOTALL) == [(EXAMPLE / "label_flip.py").read_text()]
    assert re.findall(r"```toml\n(.*?)```", page, re.DOTALL) == [(EXAMPLE / "pyproject.toml").read_text()]
    assert [name for name in engine.__all__ if f"`{name}" not in page] == []
    assert "plugins.md" in (ROOT / "README.md").read_text()


INSTALLED = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from digits_world import World, quiet
import fastforget as ff
world = World()
forget, retain = world.part(world.train, [3], True), world.part(world.train, [3], False)
net = world.net("cnn")
result = quiet(net, "label_flip", classes=[3], forget=forget, retain=retain, test=world.test, progress=False)
models = {"original": net, "unlearned": result.model, "retrained": world.net("cnn", (3,))}
report = ff.audit(models, forget=forget, retain=retain, test=world.test, progress=False)
report.write_receipt("receipt.json", result)
torch.save(result.model.state_dict(), "unlearned.pt")
print(json.dumps([result.forgot, result.receipt["method_from"], report.verdict, [str(m) for m in ff.methods.available()][-1]]))
"""


@pytest.mark.slow
def test_the_example_is_installed_by_pip_and_served(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(site)]
    installed = subprocess.run([*pip, str(source)], capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr
    env = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", INSTALLED, str(ROOT / "tests")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    forgot, origin, verdict, listed = json.loads(done.stdout.splitlines()[-1])
    assert forgot and origin == {"distribution": "label-flip", "version": "0.2.0", "object": "label_flip:LabelFlip"}
    assert verdict in ("PASS", "PARTIAL", "FAIL") and listed == "label_flip (label-flip 0.2.0): classes, samples"
    verify = [sys.executable, "-m", "fastforget", "verify", "receipt.json", "--model", "unlearned.pt"]
    checked = subprocess.run(verify, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert json.loads((tmp_path / "receipt.json").read_text())["method"]["method_from"]["version"] == "0.2.0"
