"""Unit tests for the registry of methods: names, what other packages add, and which rule a tensor gets."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from methods.folding import every_rule

from dopkit import methods
from dopkit.errors import DopkitError
from dopkit.methods import BASE, DOP_ADAM, DOP_EXACT, HALF, MEAN, Rule
from dopkit.methods.continual_parameters import MatrixParameters, WudiParameters
from dopkit.methods.dop_terms import Sides
from dopkit.methods.parameters import DopParameters
from dopkit.methods.rules import DOP_ALL, MAGMAX, NULLSPACE, TASK_ARITHMETIC, TIES, WUDI
from dopkit.roles import Role

MODULE = """
from dopkit.methods import MEAN, Method
from dopkit.methods.parameters import AverageParameters

def method(name):
    return Method(name, "from elsewhere", AverageParameters, lambda *_: MEAN, "no paper", False, False)

weird = method("weird")
dop = method("dop")
misnamed = method("other")
"""

KNOWN = ", ".join(sorted(methods.BUILTIN))

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """``install("package", weird="module:attribute")`` puts a distribution with these methods on the path."""
    (tmp_path / "elsewhere_methods.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    def install(distribution: str, **entries: str) -> None:
        site = tmp_path / f"site-{distribution}"
        info = site / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = "\n".join(f"{name} = {value}" for name, value in entries.items())
        (info / "entry_points.txt").write_text(f"[dopkit.methods]\n{lines}\n")
        monkeypatch.syspath_prepend(site)

    return install


def refusal(name: str) -> str:
    with pytest.raises(DopkitError) as caught:
        methods.find(name)
    return str(caught.value)


# Names


def test_the_built_in_methods() -> None:
    assert list(methods.known()) == sorted(methods.BUILTIN)
    assert methods.find("dop") is methods.BUILTIN["dop"]
    needs = {name: (method.needs_base, method.ordered, method.least_models) for name, method in methods.BUILTIN.items()}
    assert needs == {
        "average": (False, False, 1),
        "fisher": (False, False, 1),
        "task_arithmetic": (True, False, 1),
        "ties": (True, False, 1),
        "magmax": (True, True, 1),
        "dop": (True, True, 1),
        "opcm": (True, True, 1),
        "wudi": (True, False, 1),
        "nullspace": (True, True, 1),
        "linear": (False, False, 1),
        "dare_linear": (True, False, 1),
        "dare_ties": (True, False, 1),
        "della_linear": (True, False, 1),
        "della": (True, False, 1),
        "breadcrumbs": (True, False, 1),
        "breadcrumbs_ties": (True, False, 1),
        "ram": (True, False, 1),
        "ramplus_tl": (True, False, 1),
        "passthrough": (False, False, 1),
        "slerp": (True, False, 1),
        "nuslerp": (False, False, 2),
        "multislerp": (False, False, 2),
        "karcher": (False, False, 2),
        "model_stock": (True, False, 2),
        "nearswap": (True, False, 1),
        "arcee_fusion": (True, False, 1),
        "sce": (True, False, 1),
        "tsv": (True, False, 1),
        "ace": (True, False, 1),
        "iso_c": (True, False, 1),
        "iso_cts": (True, False, 1),
    }
    most = {name: method.most_models for name, method in methods.BUILTIN.items() if method.most_models}
    assert most == {"passthrough": 1, "slerp": 1, "nuslerp": 2, "nearswap": 1, "arcee_fusion": 1}
    drawn = {name for name, method in methods.BUILTIN.items() if method.random}
    assert drawn == {"dare_linear", "dare_ties", "della_linear", "della"}
    assert {name for name, method in methods.BUILTIN.items() if method.needs_state} == {"fisher"}


def test_a_rule_reads_what_the_parameters_name() -> None:
    for name, method in methods.BUILTIN.items():
        kind = method.parameters
        assert kind.companions <= kind.per_model & kind.whole_model, name
        found = {part for rule in every_rule() if rule.fold == f"dopkit.methods.{name}:{name.title()}"
                 for part in rule.companions}  # fmt: skip
        assert found == kind.companions or not kind.companions, name


def test_a_method_grows_when_every_rule_of_it_is_a_fold() -> None:
    """With the least parameters that each needs, on a matrix, a vector and an embedding."""
    needed = {"slerp": {"t": 0.5}, "nearswap": {"t": 0.5}}
    for name, method in methods.BUILTIN.items():
        parameters = method.parameters.model_validate(needed.get(name, {}))
        found = [method.rule_for(parameters, "x", role, shape)
                 for role, shape in ((Role.LINEAR, (4, 5)), (Role.NORM, (4,)), (Role.EMBEDDING, (4, 5)))]  # fmt: skip
        assert method.grows is not any(rule.joint for rule in found), name
        assert method.family != "others"
    assert all(method.name == name for name, method in methods.BUILTIN.items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dop-2", f"unknown method 'dop-2' (did you mean 'dop'? known: {KNOWN})"),
        ("avrage", f"unknown method 'avrage' (did you mean 'average'? known: {KNOWN})"),
        ("no-such-thing", f"unknown method 'no-such-thing' (known: {KNOWN})"),
        ("", f"unknown method '' (known: {KNOWN})"),
    ],
)
def test_an_unknown_name(name: str, message: str) -> None:
    assert refusal(name) == message


# Other packages


def test_another_package_adds_a_method(install: Install) -> None:
    install("elsewhere", weird="elsewhere_methods:weird")
    assert list(methods.known()) == sorted([*methods.BUILTIN, "weird"])
    assert methods.find("weird").summary == "from elsewhere"
    assert refusal("wierd") == f"unknown method 'wierd' (did you mean 'weird'? known: {', '.join(methods.known())})"


def test_a_package_that_is_seen_twice_is_one(install: Install) -> None:
    install("elsewhere", weird="elsewhere_methods:weird")
    install("elsewhere_again", weird="elsewhere_methods:weird")
    assert methods.find("weird").name == "weird"


def test_a_name_taken_twice_is_an_error(install: Install) -> None:
    install("one", weird="elsewhere_methods:weird")
    install("two", weird="another_module:weird")
    message = "'weird' is offered by both another_module:weird and elsewhere_methods:weird; uninstall one"
    assert refusal("weird") == message
    with pytest.raises(DopkitError) as caught:
        methods.known()
    assert str(caught.value) == message
    assert methods.find("dop") is methods.BUILTIN["dop"]  # not concerned


def test_a_built_in_name_cannot_be_taken(install: Install) -> None:
    install("one", dop="elsewhere_methods:dop")
    assert refusal("dop") == "dopkit's own method 'dop' is also offered by elsewhere_methods:dop; uninstall one"
    assert methods.find("average").name == "average"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("elsewhere_methods:misnamed", "is not a dopkit Method of that name"),
        ("elsewhere_methods:MEAN", "is not a dopkit Method of that name"),
        ("no_such_module:x", "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        (
            "elsewhere_methods:nothing",
            "cannot be loaded: AttributeError: module 'elsewhere_methods' has no attribute 'nothing'",
        ),
    ],
)
def test_a_broken_package_is_named_and_harms_nobody_else(install: Install, value: str, why: str) -> None:
    install("broken", broken=value)
    assert refusal("broken") == f"the installed method 'broken' ({value}) {why}"
    assert methods.find("dop").name == "dop"
    assert refusal("weird").startswith("unknown method 'weird' (")


# Rules

MATRIX, CUBE, VECTOR = (8, 4), (3, 8, 4), (8,)


@pytest.mark.parametrize(
    ("role", "shape", "rule"),
    [
        (Role.LINEAR, MATRIX, DOP_EXACT),
        (Role.CONV1D, MATRIX, DOP_EXACT),
        (Role.EXPERTS, CUBE, DOP_EXACT),
        (Role.HEAD, MATRIX, DOP_EXACT),
        (Role.HEAD, VECTOR, MEAN),
        (Role.LINEAR, VECTOR, MEAN),
        (Role.LINEAR, (), MEAN),
        (Role.EMBEDDING, MATRIX, MEAN),
        (Role.CONV, (8, 4, 3, 3), MEAN),
        (Role.NORM, VECTOR, MEAN),
        (Role.BIAS, VECTOR, MEAN),
        (Role.PARAMETER, (1, 1, 8), MEAN),
        (Role.BUFFER, VECTOR, MEAN),
    ],
)
def test_dop_merges_matrices_and_averages_the_rest(role: Role, shape: tuple[int, ...], rule: Rule) -> None:
    def chosen(parameters: DopParameters) -> Rule:
        return methods.find("dop").rule_for(parameters, "model.layers.0.x.weight", role, shape)

    assert chosen(DopParameters()) is rule
    assert chosen(DopParameters(solver="adam")) is (DOP_ADAM if rule is DOP_EXACT else MEAN)
    assert chosen(DopParameters(other="half")) is (DOP_EXACT if rule is DOP_EXACT else HALF)
    assert chosen(DopParameters(exclude=("model.layers.*",))) is MEAN
    assert chosen(DopParameters(exclude=("*.x.weight",), other="half")) is HALF
    assert chosen(DopParameters(exclude=("layers.*", "MODEL.*"))) is rule  # whole names, in their own case


@pytest.mark.parametrize(
    ("name", "rule"), [("average", MEAN), ("task_arithmetic", TASK_ARITHMETIC), ("ties", TIES), ("magmax", MAGMAX)]
)
def test_some_methods_do_the_same_with_everything(name: str, rule: Rule) -> None:
    method = methods.find(name)
    assert all(method.rule_for(method.parameters(), "x", role, (2, 2)) is rule for role in Role)


def test_history_all_keeps_sums_for_the_sides_it_projects_on() -> None:
    def chosen(role: Role, **given: Any) -> Rule:
        return methods.find("dop").rule_for(DopParameters(history="all", **given), "x", role, MATRIX)

    rows, columns = Sides(True, False), Sides(False, True)
    assert chosen(Role.LINEAR) is chosen(Role.CONV1D) is DOP_ALL[Sides(True, True)]
    assert chosen(Role.LINEAR, svd_proj_space="u") is chosen(Role.CONV1D, svd_proj_space="v") is DOP_ALL[rows]
    assert chosen(Role.LINEAR, svd_proj_space="v") is chosen(Role.CONV1D, svd_proj_space="u") is DOP_ALL[columns]
    assert chosen(Role.NORM) is MEAN
    wudi = methods.find("wudi").rule_for
    assert wudi(WudiParameters(), "x", Role.LINEAR, MATRIX) is WUDI[columns]
    assert wudi(WudiParameters(), "x", Role.CONV1D, MATRIX) is WUDI[rows]


@pytest.mark.parametrize(("name", "rule"), [("wudi", WUDI[Sides(False, True)]), ("nullspace", NULLSPACE)])
def test_what_is_no_matrix_is_left_to_other(name: str, rule: Rule) -> None:
    method = methods.find(name)

    def chosen(shape: tuple[int, ...], role: Role = Role.LINEAR, **given: Any) -> Rule:
        parameters = method.parameters.model_validate(given)
        assert isinstance(parameters, MatrixParameters)
        return method.rule_for(parameters, "a.weight", role, shape)

    assert chosen(MATRIX) is chosen(CUBE, Role.EXPERTS) is chosen(MATRIX, Role.HEAD) is rule
    for other, wanted in (("mean", MEAN), ("half", HALF), ("base", BASE)):
        assert chosen(VECTOR, other=other) is chosen(MATRIX, Role.EMBEDDING, other=other) is wanted
        assert chosen(MATRIX, exclude="a.*", other=other) is wanted


@pytest.mark.parametrize(
    ("name", "given", "scale"),
    [
        ("average", {}, None),
        ("task_arithmetic", {"lambda": 0.3}, None),  # the fold's own business
        ("magmax", {}, None),
        ("dop", {}, None),
        ("dop", {"scale": 1}, None),
        ("dop", {"scale": 1.5}, 1.5),
        ("dop", {"history": "all", "scale": "norm"}, "norm"),
        ("wudi", {}, None),
        ("wudi", {"scale": "norm"}, "norm"),
        ("opcm", {}, "norm"),
        ("nullspace", {}, None),
    ],
)
def test_what_the_merged_task_vector_is_multiplied_by(name: str, given: dict[str, Any], scale: object) -> None:
    method = methods.find(name)
    assert method.scale_of(method.parameters.model_validate(given)) == scale


@pytest.mark.parametrize("rule", every_rule(), ids=lambda rule: rule.name)
def test_every_rule_loads_its_fold_or_copies(rule: Rule) -> None:
    if rule.fold is None:
        assert (rule.needs_base, rule.cut) == (True, methods.Cut.BLOCKS)
        return
    if rule.joint:
        assert callable(rule.load_joint().merge)
        assert rule.state((4, 5)) == {}
        return
    fold = rule.load()
    assert all(callable(getattr(fold, name)) for name in ("start", "step", "finish", "pack", "unpack"))


@pytest.mark.parametrize("rule", every_rule(), ids=lambda rule: rule.name)
def test_a_rule_needs_room_for_its_state_and_time(rule: Rule) -> None:
    for shape in ((300, 200), (200, 300), (100, 900)):
        if rule.fold is not None:
            sizes = {"F32": 4, "F64": 8}
            state = sum(sizes[dtype] * math.prod(part) for dtype, part in rule.state(shape).values())
            assert rule.working_bytes(shape) > state
        assert 0 < rule.effort(shape) < 1


def test_working_bytes_are_counted_in_float32() -> None:
    assert MEAN.working_bytes((10, 20)) == 3 * 10 * 20 * 4
    assert HALF.working_bytes(()) == 2 * 4
    assert methods.BASE.working_bytes((0, 7)) == 0
    assert DOP_EXACT.working_bytes((30, 20)) == DOP_EXACT.working_bytes((20, 30)) > 4 * 30 * 20


def test_suggestions_are_for_near_words_only() -> None:
    assert methods.suggestion("base_modle", ["base_model", "models"]) == "did you mean 'base_model'? "
    assert methods.suggestion("xyz", ["base_model", "models"]) == ""
    assert methods.suggestion("x", iter(())) == ""
