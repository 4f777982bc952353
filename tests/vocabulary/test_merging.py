"""Merges of models whose tokens differ, from recipe to file: laws, what is written beside the weights, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
import wordy
from safetensors.torch import save_file

import dopkit
from dopkit.errors import PlanError

MakeRecipe = Callable[..., dopkit.Recipe]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def refusal(recipe: dopkit.Recipe) -> str:
    with pytest.raises(PlanError) as caught:
        dopkit.plan(recipe)
    return str(caught.value)


def stir(source: Path, folder: Path, seed: int) -> Path:
    return tiny.make_expert(source, folder, seed, scale=0.5)


def permute(source: Path, folder: Path, order: list[int]) -> Path:
    """The same model, its ids in another order: the row i of the copy is the row ``order[i]`` of the source."""

    def change(tensors: tiny.Tensors) -> tiny.Tensors:
        return {name: one[order].clone() if name in (EMBEDDING, HEAD) else one for name, one in tensors.items()}

    tiny.edit(source, folder, change)
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    place = {old: new for new, old in enumerate(order)}
    data["model"]["vocab"] = {token: place[number] for token, number in data["model"]["vocab"].items()}
    for one in data["added_tokens"]:
        one["id"] = place[one["id"]]
    path.write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize("method", ["dop", "task_arithmetic", "ties"])
def test_the_union_of_equal_tokenizers_changes_nothing(method: str, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    base = wordy.make(tmp_path / "base", 0, added={"<x>": False})
    for number in (0, 1):
        stir(base, tmp_path / f"e{number}", number)
    parameters = {"density": 0.5} if method == "ties" else {}
    for name, keys in (("plain", {}), ("united", {"tokenizer": "union"})):
        dopkit.run(make_recipe(tmp_path, ["e0", "e1"], method, parameters=parameters, **keys), tmp_path / name)
    assert tiny.weights(tmp_path / "plain") == tiny.weights(tmp_path / "united")
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "united" / file).read_bytes() == (base / file).read_bytes()
    assert wordy.config(tmp_path / "plain") == wordy.config(tmp_path / "united")


@pytest.mark.parametrize("method", ["dop", "task_arithmetic", "ties", "slerp"])
@pytest.mark.parametrize("source", ["union", "base", "./base"])
def test_the_order_of_a_vocabulary_does_not_matter(
    method: str, source: str, tmp_path: Path, make_recipe: MakeRecipe
) -> None:
    base = wordy.make(tmp_path / "base", 0)
    stir(base, tmp_path / "e0", 1)
    stir(base, tmp_path / "e1", 2)
    permute(tmp_path / "e1", tmp_path / "permuted", [3, 0, 8, 1, 7, 2, 6, 4, 5])
    models = ["e0"] if method == "slerp" else ["e0", "e1"]
    models = models if method != "slerp" else ["e1"]
    parameters = {"ties": {"density": 0.5}, "slerp": {"t": 0.3}}.get(method, {})
    other = [name.replace("e1", "permuted") for name in models]
    dopkit.run(make_recipe(tmp_path, models, method, parameters=parameters), tmp_path / "plain")
    dopkit.run(make_recipe(tmp_path, other, method, parameters=parameters, tokenizer=source), tmp_path / "out")
    assert tiny.weights(tmp_path / "plain") == tiny.weights(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_a_fisher_does_not_follow_the_tokens(tmp_path: Path) -> None:
    """Its rows would weigh other tokens than the model's: refused where they are put in order, and only there."""
    base = wordy.make(tmp_path / "base", 0)
    stir(base, tmp_path / "e0", 1)
    permute(tmp_path / "e0", tmp_path / "e1", [3, 0, 8, 1, 7, 2, 6, 4, 5])
    for name in ("e0", "e1"):
        fisher = {key: one.float().square() for key, one in tiny.read(tmp_path / name).items()}
        save_file(fisher, tmp_path / name / "fisher.safetensors")
    entries = "".join(f"- {{model: ./{name}, parameters: {{fisher: ./{name}}}}}\n" for name in ("e0", "e1"))
    text = f"merge_method: fisher\nbase_model: ./base\ntokenizer: base\nmodels:\n{entries}"
    message = refusal(dopkit.parse_recipe(text, folder=tmp_path))
    assert f"the rows of {EMBEDDING} follow the tokens of the result" in message
    assert "./e1: does not fit ./e1" in message and message.count("does not fit") == 1
    copied = text + "copy: [embed_tokens.weight, lm_head.weight]\n"
    assert dopkit.plan(dopkit.parse_recipe(copied, folder=tmp_path), tmp_path / "out").rules()["fisher"][0] > 0


def test_a_text_finds_the_rows_of_its_tokens(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    from tokenizers import Tokenizer

    wordy.make_three(tmp_path)
    recipe = make_recipe(tmp_path, ["e1", "e0"], "linear", parameters={"weight": 1.0}, tokenizer="union")
    dopkit.run(recipe, tmp_path / "out")
    own, out = (Tokenizer.from_file(str(tmp_path / name / "tokenizer.json")) for name in ("e1", "out"))
    text = "abcd <x> dab<|im_end|>"
    rows = tiny.read(tmp_path / "out")[EMBEDDING][out.encode(text).ids, 0]
    theirs = {token: 2000.0 + number for token, number in wordy.ids(tmp_path / "e1").items()}
    other = {token: 1000.0 + number for token, number in wordy.ids(tmp_path / "e0").items()}
    tokens = own.encode(text).tokens
    assert out.encode(text).tokens == tokens
    # the base weighs nothing beside them: linear takes the mean of both
    assert rows.tolist() == [(theirs[one] + other.get(one, theirs[one])) / 2 for one in tokens]


def test_a_merged_model_generates(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """transformers loads it with its tokenizer, and every id has a row."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wordy.make_three(tmp_path)
    recipe = make_recipe(tmp_path, ["e0", "e1"], "linear", parameters={"weight": 1.0},
                         tokenizer={"source": "union", "pad_to_multiple_of": 32})  # fmt: skip
    result = dopkit.run(recipe, tmp_path / "out")
    assert "tokenizer: union of 3, 13 tokens (4 added), padded to 32" in result.plan.notes
    assert result.receipt["notes"] == list(result.plan.notes)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == len(model.get_input_embeddings().weight) == 32
    assert len(tokenizer) == 13 and tokenizer.convert_tokens_to_ids("<|im_end|>") == 12
    ids = tokenizer("abcd <|im_start|> ab", return_tensors="pt").input_ids
    with torch.no_grad():
        assert model(input_ids=ids).logits.shape == (1, ids.shape[1], 32)


def test_padding_alone_needs_no_word(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """The base has 16 rows for 9 tokens, an expert 9, another 12: the base's rows stay, and the plan says so."""
    base = wordy.make(tmp_path / "base", 0, rows=16)
    wordy.make(tmp_path / "short", 1)
    wordy.make(tmp_path / "long", 2, rows=20)
    recipe = make_recipe(tmp_path, ["short", "long"], "task_arithmetic", parameters={"lambda": 0.5})
    result = dopkit.run(recipe, tmp_path / "out")
    assert "./short: its embedding of 9 rows gets 16: those beyond the 9 tokens hold none" in result.plan.notes
    assert "./long: its embedding of 20 rows gets 16: those beyond the 9 tokens hold none" in result.plan.notes
    found = tiny.read(tmp_path / "out")[EMBEDDING][:, 0]
    assert found[:9].tolist() == [1500.0 + row for row in range(9)]
    assert found[9:].tolist() == [row + 1000.0 for row in range(9, 16)]  # the longer one's own padding counts
    assert wordy.config(tmp_path / "out")["vocab_size"] == 16
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_tokenizers_that_differ_are_refused_by_the_token(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    wordy.make(tmp_path / "base", 0)
    wordy.make(tmp_path / "more", 1, added={"<x>": False, "<y>": False})
    wordy.make(tmp_path / "moved", 2, ["<unk>", "<s>", "</s>", "b", "a", "c", "d", "ab", "cd"])
    wordy.make(tmp_path / "less", 3, [*wordy.PLAIN[:-1], "ba"])
    said = refusal(make_recipe(tmp_path, ["more", "moved", "less"], "task_arithmetic"))
    assert "./more: its token '<x>' (id 9) is not in ./base, and 1 more of its tokens differ" in said
    assert "./moved: its token 'b' has the id 3, in ./base 4" in said
    assert "./less: its token 'ba' (id 8) is not in ./base" in said  # though the shapes are equal
    assert said.count("`tokenizer: base`, `tokenizer: union`, or a model's name there.") == 3


def test_a_token_without_a_row_is_refused(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    added = {"<x>": False}
    wordy.make(tmp_path / "base", 0, added=added, rows=9)
    wordy.make(tmp_path / "e0", 1, added=added)
    said = refusal(make_recipe(tmp_path, ["e0"], "task_arithmetic"))
    assert "./base: has no row for its token '<x>' (id 9): its embedding has 9 rows" in said
    plan = dopkit.plan(make_recipe(tmp_path, ["e0"], "task_arithmetic", tokenizer="base"))
    assert "./base: rows that are not its own: 1 of ./e0" in plan.notes


def test_what_is_copied_needs_no_word(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """With the base's embedding and head nothing of the other tokens is in the result."""
    wordy.make(tmp_path / "base", 0)
    wordy.make(tmp_path / "e0", 1, added={"<x>": False})
    keys = {"copy": ["embed_tokens.weight", "lm_head.weight"]}
    dopkit.run(make_recipe(tmp_path, ["e0"], "task_arithmetic", **keys), tmp_path / "out")
    assert tiny.read(tmp_path / "out")[EMBEDDING][:, 0].tolist() == list(range(9))


def test_an_expert_without_a_tokenizer_has_the_bases(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    wordy.make_three(tmp_path)
    wordy.make_llama(tmp_path / "bare", 7, 9)
    recipe = make_recipe(tmp_path, ["bare", "e0"], "linear", parameters={"weight": 1.0}, tokenizer="union")
    dopkit.run(recipe, tmp_path / "out")
    ids = wordy.ids(tmp_path / "out")
    found = tiny.read(tmp_path / "out")[EMBEDDING][:, 0]
    assert found[ids["cd"]] == (7008 + 1008) / 2
    assert found[ids["<x>"]] == 1010


def test_no_tokenizer_nothing_to_ask_for(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    assert "nothing in ./base has a row for every token" in refusal(make_recipe(vit, ["e0"], tokenizer="union"))
    wordy.make_llama(tmp_path / "base", 0, 9)
    wordy.make_llama(tmp_path / "e0", 1, 9)
    assert "no model of the recipe has one" in refusal(make_recipe(tmp_path, ["e0"], tokenizer="base"))


def test_a_tokenizer_of_none_of_the_models(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """Its folder needs no weights; tokens that no model has begin with the mean of a model's rows."""
    wordy.make_three(tmp_path)
    wordy.make_tokenizer(tmp_path / "words", [*reversed(wordy.PLAIN)], {"<x>": False, "<z>": False}, "W")
    (tmp_path / "words" / "config.json").write_text(json.dumps({"eos_token_id": [9, 0], "pad_token_id": 10}))
    recipe = make_recipe(tmp_path, ["e0"], "linear", parameters={"weight": 1.0}, tokenizer="./words")
    result = dopkit.run(recipe, tmp_path / "out")
    assert "tokenizer: that of ./words, 11 tokens" in result.plan.notes
    assert "./e0: 1 token is not in the result's tokenizer: '<|im_start|>'" in result.plan.notes
    found = tiny.read(tmp_path / "out")[EMBEDDING][:, 0].tolist()
    own = [*reversed(range(1000, 1009)), 1010]
    assert found == pytest.approx([*own, sum(own) / 10], rel=1e-6)
    assert wordy.ids(tmp_path / "out") == wordy.ids(tmp_path / "words")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "W"
    config = wordy.config(tmp_path / "out")
    assert (config["vocab_size"], config["bos_token_id"]) == (11, 7)  # the base's <s>
    assert (config["eos_token_id"], config["pad_token_id"]) == ([9, 0], 10)  # as ./words says
    assert wordy.config(tmp_path / "out", "generation_config.json")["eos_token_id"] == 6


def test_rows_of_single_tokens_that_cannot_be(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    wordy.make_three(tmp_path)
    tokens = {
        "<x>": {"source": "./base"},
        "<z>": {"source": {"kind": "model_token", "model": "./e0", "token_id": 99}},
    }
    said = refusal(make_recipe(tmp_path, ["e0", "e1"], "linear", parameters={"weight": 1.0},
                               tokenizer={"tokens": tokens}))  # fmt: skip
    assert "'<x>' is to have a row for '<x>' of ./base, which has none" in said
    assert "'<z>' is to have row 99 of ./e0, which has none" in said


def test_another_tokenizer_is_another_merge(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """An unfinished one is not continued."""
    wordy.make_three(tmp_path)
    plans = [
        dopkit.plan(make_recipe(tmp_path, ["e0"], "linear", parameters={"weight": 1.0}, tokenizer={"tokens": tokens}))
        for tokens in ({}, {"<x>": {"source": {"kind": "zero"}}}, {"<x>": {"source": {"kind": "zero"}, "force": True}})
    ]
    assert len({plan.fingerprint("cpu") for plan in plans}) == 3


def test_the_memory_of_putting_rows_together_is_counted(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    wordy.make(tmp_path / "base", 0, rows=20_000)
    wordy.make(tmp_path / "e0", 1, rows=20_000)
    wordy.make(tmp_path / "e1", 1, rows=20_001)
    plain, longer = (dopkit.plan(make_recipe(tmp_path, [name], "task_arithmetic")) for name in ("e0", "e1"))
    part = 20_000 * wordy.WIDTH * 4
    needs = [one.memory_bytes - one.program_bytes for one in (longer, plain)]
    assert needs[0] - needs[1] >= 3 * part


def test_tied_models(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    wordy.make(tmp_path / "base", 0, tied=True)
    wordy.make(tmp_path / "e0", 1, added={"<x>": False}, tied=True)
    recipe = make_recipe(tmp_path, ["e0"], "linear", parameters={"weight": 1.0}, tokenizer="union")
    dopkit.run(recipe, tmp_path / "out")
    found = tiny.read(tmp_path / "out")
    assert HEAD not in found and found[EMBEDDING][:, 0].tolist() == [*range(1000, 1010)]


def test_a_model_of_sentencepiece_alone(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """Equal by its bytes, and by nothing else; beside a tokenizer.json its tokens are known."""
    for number, name in enumerate(("base", "e0", "e1")):
        wordy.make_llama(tmp_path / name, number, 9)
        (tmp_path / name / "tokenizer.model").write_bytes(b"pieces")
    dopkit.plan(make_recipe(tmp_path, ["e0", "e1"], "task_arithmetic"))
    (tmp_path / "e1" / "tokenizer.model").write_bytes(b"other pieces")
    said = refusal(make_recipe(tmp_path, ["e0", "e1"], "task_arithmetic"))
    assert "./e1: its tokens cannot be compared: they are in tokenizer.model alone" in said
    wordy.make_tokenizer(tmp_path / "base")
    (tmp_path / "e1" / "tokenizer.model").write_bytes(b"pieces")
    dopkit.plan(make_recipe(tmp_path, ["e0", "e1"], "task_arithmetic"))
    (tmp_path / "e1" / "added_tokens.json").write_text('{"<x>": 9}')
    said = refusal(make_recipe(tmp_path, ["e0", "e1"], "task_arithmetic"))
    assert "./e1: its token '<x>' (id 9) is not in ./base" in said and "./e0" not in said


def test_only_rows_are_put_in_order(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    from transformers import BartConfig, BartForConditionalGeneration

    for name, added in (("base", {}), ("e0", {"<x>": False})):
        config = BartConfig(vocab_size=9 + len(added), d_model=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8,
                            decoder_ffn_dim=8, encoder_attention_heads=1, decoder_attention_heads=1)  # fmt: skip
        BartForConditionalGeneration(config).save_pretrained(tmp_path / name)
        wordy.make_tokenizer(tmp_path / name, added=added)
    said = refusal(make_recipe(tmp_path, ["e0"], "task_arithmetic", tokenizer="union"))
    assert "final_logits_bias has a column for every token; only rows can be put in another order" in said


def test_adding_to_a_merge_that_made_its_tokens(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    wordy.make_three(tmp_path)
    for name, keys in (("union", {"tokenizer": "union"}), ("base", {"tokenizer": "base"})):
        dopkit.run(make_recipe(tmp_path, ["e0"], "task_arithmetic", **keys), tmp_path / f"of {name}")
        if name == "union":
            with pytest.raises(PlanError, match="what its new tokens begin with depends on all models"):
                dopkit.add(tmp_path / "of union", [str(tmp_path / "e1")], tmp_path / "two")
            dopkit.add(tmp_path / "of union", [str(tmp_path / "e1")], tmp_path / "two", from_experts=True)
        else:
            dopkit.add(tmp_path / "of base", [str(tmp_path / "e1")], tmp_path / "three")
        dopkit.run(make_recipe(tmp_path, ["e0", "e1"], "task_arithmetic", **keys), tmp_path / f"both {name}")
    assert tiny.weights(tmp_path / "two") == tiny.weights(tmp_path / "both union")
    assert tiny.same(tiny.read(tmp_path / "three"), tiny.read(tmp_path / "both base"))


def test_a_tokenizer_saved_anew_is_the_same(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """Other bytes, the same tokens: nothing to ask."""
    base = wordy.make(tmp_path / "base", 0, added={"<x>": False})
    shutil.copytree(base, tmp_path / "e0")
    path = tmp_path / "e0" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    config = tmp_path / "e0" / "tokenizer_config.json"
    decoder = {"9": {"content": "<x>", "special": False}}
    config.write_text(json.dumps({**json.loads(config.read_text()), "added_tokens_decoder": decoder}))
    assert dopkit.plan(make_recipe(tmp_path, ["e0"], "task_arithmetic")).notes == ()
