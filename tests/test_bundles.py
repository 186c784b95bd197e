"""Bundles: what an honest sender packs is accepted, and each thing that a forger may do to it is refused with its reason."""

import json
import os
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from forger import resealed
from test_cli import rkhs

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import DDN
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.evaluation.training_accuracy import above_training, training_images
from robustbench_rkhs.nodes.limits import Limits
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports import write_leaderboard
from robustbench_rkhs.reports.entries import board
from robustbench_rkhs.reports.update import Updated
from robustbench_rkhs.runtime.files import Unwritable
from robustbench_rkhs.runtime.seals import sha256_of
from robustbench_rkhs.service.bundles import Bundle as Sent
from robustbench_rkhs.service.guarding import guard
from robustbench_rkhs.service.settings import Settings
from robustbench_rkhs.submission import claims, gate, owners
from robustbench_rkhs.submission.bundle import read_bundle
from robustbench_rkhs.submission.bundle_check import CheckResult, again, check_bundle, new_bundles, submit_bundle
from robustbench_rkhs.submission.comment import comment, read_results
from robustbench_rkhs.submission.foreseen import foreseen
from robustbench_rkhs.submission.keys import sign
from robustbench_rkhs.submission.owners import owner_of
from robustbench_rkhs.submission.packing import pack_adversarials, pack_checkpoint
from robustbench_rkhs.submission.pull_request import open_pull_request
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.recipe import TrainRecipe

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {"eps": ("0.05", "0.5"), "attacks": (DDN(steps=5),), "certificates": ("margin",), "diagnostics": False}
QUICK = {"attacks": (DDN(steps=5),), "diagnostics": False, "samples": 12}


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """What a sender has: a checkpoint, its evaluation on 60 images, a key, and a bundle of the first two."""
    home = tmp_path_factory.mktemp("sender")
    recipe = TrainRecipe.read("digits_sandwich", {"network.hidden": "[16]"})
    test = recipe.data.test()
    model = checkpoint.build(recipe, test.shape, 10)
    with torch.no_grad():
        model[-1].bias.zero_()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(20 * model(test.x[:300]), test.y[:300]).backward()
        optimizer.step()
    checkpoint.save(home / "stranger", recipe, test, model.eval().state_dict(), "# card\n")
    loaded = checkpoint.load(home / "stranger")
    evaluate(loaded.model, test, EvalRecipe(**SETTINGS, samples=60), name="stranger", folder=home / "reports/verdicts")
    pack_checkpoint(home / "stranger", home / "bundle", out=home / "reports", key=home / "key.pem")
    return home


@pytest.fixture
def place(sent, tmp_path, monkeypatch):
    """A gate without figures and without a process of its own, which takes seconds to begin; and a copy of the bundle."""

    def here(path, name, recipes, device, folder, command, limits, claims=None):
        loaded = checkpoint.load(path)
        where = {"name": name, "folder": folder, "training": training_images(loaded.recipe.data)}
        for number, recipe in enumerate(recipes):
            if claims and not number:
                from robustbench_rkhs.submission.claims import evaluate_sample

                given = claims.table, claims.sample, claims.seed
                done, found = evaluate_sample(*given, loaded.model, loaded.recipe.data.test(), recipe, **where)
                list(map(claims.tell, found.lines))
            else:
                done = evaluate(loaded.model, loaded.recipe.data.test(), recipe, **where)
            yield verdicts.read(done.path)

    def board_alone(out):
        return Updated({"leaderboard": write_leaderboard(verdicts.read_all(out / "verdicts"), out)})

    monkeypatch.setattr(gate, "evaluations", here)
    monkeypatch.setattr(gate, "update", board_alone)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sent / "bundle", tmp_path / "bundle")
    return tmp_path


def submitted(place, folder="bundle", **more):
    return list(submit_bundle(place / folder, sample=8, device="cpu", out=place / "out", settings=QUICK, **more))


def resigned(folder, key, **fields):
    """The bundle with its list of files as they are now, and other fields, signed again: whoever forges has a key, too."""
    stated = yaml.safe_load((folder / "submission.yaml").read_text()) | fields
    (folder / "sender.pub").write_text(sign(b"", key)[0] + "\n")
    stated["files"] = {name: sha256_of(folder / name) for name in stated["files"] if (folder / name).is_file()}
    (folder / "submission.yaml").write_text(yaml.safe_dump(stated))
    (folder / "signature").write_text(sign((folder / "submission.yaml").read_bytes(), key)[1])


def forged(sent, place, change):
    """The bundle with a table that its sender changed, sealed and signed again."""
    found = verdicts.read(place / "bundle/verdicts.parquet")
    table, about = change(found.table.copy(), found.about)
    verdicts.write(verdicts.Evaluation(table, about), place / "bundle/verdicts.parquet")
    resigned(place / "bundle", sent / "key.pem")


def test_an_honest_bundle_is_accepted_and_its_sample_is_one_that_the_gate_draws(sent, place):
    said = submitted(place)
    seeds = [int(line.rpartition("seed ")[2]) for line in said if "drawn by the gate" in line]
    assert len(seeds) == 1 and any("0 classified otherwise" in line for line in said) and "accepted" in said[-2]
    (row,) = verdicts.read_all(place / "out/verdicts")
    assert row.about.model == "stranger" and row.about.submitted and row.about.seed == 0
    assert owner_of(place / "out", "stranger") == read_bundle(place / "bundle").sender
    assert (place / "out/owners/stranger").read_text().strip() not in (sent / "key.pem").read_text()
    assert stat.S_IMODE((sent / "key.pem").stat().st_mode) == 0o600
    before = sorted((place / "out/verdicts").rglob("*.parquet"))
    again_ = submitted(place, publish=False, seed=seeds[0])
    assert "nothing was published" in again_[-1] and sorted((place / "out/verdicts").rglob("*.parquet")) == before


def test_what_was_trained_from_ones_own_recipe_is_taken_as_a_folder_and_as_a_bundle(sent, place):
    """The fault: a recipe in models/ of the working directory made the name a listed one, but for its own folder."""
    (place / "models").mkdir()
    shutil.copy(sent / "stranger/recipe.yaml", place / "models/stranger.yaml")
    shutil.copytree(sent / "stranger", place / "checkpoints/stranger")
    gated = {"sample": 8, "device": "cpu", "out": place / "out"}
    recipe = EvalRecipe(**SETTINGS | QUICK | {"samples": 8})
    assert "accepted" in list(gate.submit(place / "checkpoints/stranger", recipe, **gated))[-2]
    checked = {**gated, "settings": QUICK}  # of more images: the row changes
    assert check_bundle(place / "bundle", print, **checked).accepted
    (place / "checkpoints/stranger/model.safetensors").unlink()  # what was trained here is not that: the row is somebody else's
    held = check_bundle(place / "bundle", print, **checked)
    assert held.accepted is False and "held for manual review" in held.reason
    shutil.copy(sent / "stranger/model.safetensors", place / "checkpoints/stranger")
    assert "accepted" in submitted(place)[-2]


@pytest.mark.parametrize("own", [False, True])
def test_nobody_takes_the_name_of_a_model_that_comes_with_the_package(sent, place, own):
    """With a models/ of one's own beside it, too, in which that recipe is or is not."""
    (place / "models").mkdir()
    if own:
        shutil.copy(ROOT / "models/digits_mlp.yaml", place / "models")
    shutil.move(place / "bundle/stranger", place / "bundle/digits_mlp")
    stated = yaml.safe_load((place / "bundle/submission.yaml").read_text())
    files = {name.replace("stranger/", "digits_mlp/"): digest for name, digest in stated["files"].items()}
    (place / "bundle/submission.yaml").write_text(yaml.safe_dump(stated | {"name": "digits_mlp", "files": files}))
    resigned(place / "bundle", sent / "key.pem")
    with pytest.raises(UserError, match="'digits_mlp' is the name of a model that comes with the package"):
        submitted(place)


def test_whoever_sends_code_of_his_own_is_told_that_no_flag_lets_it_in(sent, place):
    """The fault: the hint named --allow-code, which rkhs-submit and the service do not have."""
    shutil.copytree(sent / "stranger", place / "mytiny")
    stored = yaml.safe_load((place / "mytiny/recipe.yaml").read_text())
    (place / "mytiny/recipe.yaml").write_text(yaml.safe_dump(stored | {"network": {"name": "own/tiny.py:Tiny"}}))
    resealed(place / "mytiny")
    resigned(place / "bundle", sent / "key.pem", evaluation={"norm": "l2", "eps": ["0.1"], "certificates": ["a:B"]})
    ends = [
        lambda: list(gate.submit(place / "mytiny", EvalRecipe(**SETTINGS), sample=8, device="cpu", out=place / "out")),
        lambda: pack_checkpoint(place / "mytiny", place / "packed", out=place / "out", key=sent / "key.pem"),
        lambda: guard(Sent("checkpoint", "mytiny", place / "mytiny"), Settings(folder=place / "service", out=place / "out")),
        lambda: gate.check(Path("own/tiny.py:make")),
        lambda: gate.check(Path("own/tiny.py")),
        lambda: submitted(place),
    ]
    for end in ends:
        with pytest.raises(UserError, match=r"only use the package's own networks .*its code is never run") as refused:
            end()
        assert "--allow-code" not in str(refused.value) and "\n" not in str(refused.value)


def test_the_images_of_the_sample_are_drawn_once_for_each_function(sent, tmp_path):
    first, again_, other, table = (gate._drawn(tmp_path / "x", one[0] * 64, one[1] * 64) for one in ("ac", "ac", "bc", "ad"))
    assert first == again_ and len({first, other, table}) == 3
    (own,) = verdicts.read_all(sent / "reports/verdicts")
    samples = [tuple(claims.drawn(own, 20, seed, np.arange(500))) for seed in (first, again_, other)]
    assert samples[0] == samples[1] != samples[2] and len(set(samples[0])) == 20
    with pytest.raises(UserError, match="which the data set does not have"):
        claims.drawn(own, 20, 0, np.arange(5))


def test_a_name_belongs_to_whoever_sent_it_first(sent, place):
    sender, out = read_bundle(place / "bundle").sender, place / "out"
    with owners.claimed(out, "stranger", sender, new=True):
        pass
    resigned(place / "bundle", place / "other.pem")
    with pytest.raises(UserError, match=r"'stranger' belongs to whoever sent it first.*sent with another key"):
        submitted(place)
    with pytest.raises(UserError, match=r"'stranger' belongs to whoever sent it first.*sent with no key"):
        list(gate.submit(place / "bundle/stranger", EvalRecipe(**SETTINGS), sample=5, device="cpu", out=out))
    assert owner_of(out, "stranger") == sender
    with pytest.raises(UserError, match="'Stranger' reads like 'stranger'"):
        shutil.copytree(place / "bundle/stranger", place / "Stranger")
        list(gate.submit(place / "Stranger", EvalRecipe(**SETTINGS), sample=5, device="cpu", out=out))
    with owners.claimed(out, "stranger", sender, new=False):  # its owner sends it again
        pass


def test_of_two_who_send_a_name_at_once_one_has_it(tmp_path):
    def ask(sender):
        try:
            with owners.claimed(tmp_path, "name", sender * 64, new=True):
                return sender
        except UserError:
            return ""

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(ask, "abcdefgh" * 4)) - {""}
    assert found == {owner_of(tmp_path, "name")[0]} and owners.names_owned(tmp_path) == ["name"]


def test_a_name_stays_claimed_where_nothing_was_decided(tmp_path):
    undecided = (gate.Incomplete, gate.Held)
    later, held, refused = gate.Incomplete("later", "budget"), gate.Held("by a person"), UserError("no")
    for error, kept in ((later, True), (held, True), (refused, False), (KeyboardInterrupt(), True)):
        name = type(error).__name__
        with pytest.raises(type(error)), owners.claimed(tmp_path, name, "a" * 64, True, undecided):
            raise error
        assert bool(owner_of(tmp_path, name)) == kept


def test_a_refused_submission_leaves_no_owner_behind(sent, place):
    forged(sent, place, lambda table, about: (table, about.but(weights="0" * 64)))
    with pytest.raises(UserError):
        submitted(place)
    assert owner_of(place / "out", "stranger") == ""


def all_certified(table, about):
    table.loc[(table["kind"] == "certificate") & (table["method"] == "margin"), "radius"] = 0.6
    return table[table["kind"] == "certificate"], about


def nothing_found(table, about):
    attacks = table["kind"] == "attack"
    table.loc[attacks, ["distance_l2", "distance_linf"]] = np.nan
    table.loc[attacks, "radius"] = np.inf
    return table, about


def other_answers(table, about):
    table["predicted"] = table["predicted"].where(table["index"] % 2 == 0, (table["label"] + 1) % 10)
    return table, about


def other_images(table, about):
    table["input_sha256"] = "0" * 64
    return table, about


FORGED = {
    "certified beyond truth": (all_certified, "certified radii are false|calls certified are not proved here"),
    "attacks that found nothing": (nothing_found, "that it calls robust are broken here, 0 the other way"),
    "other answers": (other_answers, "classified otherwise here than it says"),
    "images of another set": (other_images, "its images or labels are not those of the data set"),
    "another model's": (lambda table, about: (table.assign(weights="1" * 64), about.but(weights="1" * 64)), "is of another model"),
    "other data": (lambda table, about: (table, about.but(data_digest="2" * 64)), "is of data 222222222222"),
    "fewer radii": (lambda table, about: (table, about.but(epsilons=(0.05,), eps_text=("0.05",))), "says nothing of eps 0.5"),
}


@pytest.fixture(scope="module")
def ours(sent):
    """What the gate finds on 30 of the sender's images."""
    loaded = checkpoint.load(sent / "stranger")
    given = sent / "bundle/verdicts.parquet", 30, 1, loaded.model, loaded.recipe.data.test()
    return claims.evaluate_sample(*given, EvalRecipe(**SETTINGS))


@pytest.mark.parametrize("name", FORGED)
def test_a_table_that_claims_more_than_is_true_is_refused(ours, sent, tmp_path, name):
    change, reason = FORGED[name]
    done, honest = ours
    assert not honest.reason and len(honest.lines) == 3
    own = verdicts.read(sent / "bundle/verdicts.parquet")
    table, about = change(own.table.copy(), own.about)
    verdicts.write(verdicts.Evaluation(table, about), tmp_path / "table.parquet")
    with pytest.raises(UserError, match=reason):
        read = claims.read_claims(tmp_path / "table.parquet", own.about.weights, own.about.key, own.about.data_digest)
        raise UserError(claims.compared(done, read).reason)


def test_the_gate_refuses_a_forged_table_and_says_what_shows_it(sent, place):
    forged(sent, place, other_answers)
    found = check_bundle(place / "bundle", lambda line: None, sample=30, device="cpu", out=place / "out", settings=QUICK)
    assert found.accepted is False and "the sender's table claims more than is true" in found.reason
    assert found.command.startswith("rkhs-submit check ") and not (place / "out/verdicts").exists()


def touched(name, text=b"x"):
    def change(folder, key):
        (folder / name).write_bytes(text)

    return change


def a_link(folder, key):
    (folder / "stranger/config.json").unlink()
    os.symlink("/etc/hostname", folder / "stranger/config.json")


def a_linked_folder(folder, key):
    shutil.move(folder / "stranger", folder.parent / "away")
    os.symlink(folder.parent / "away", folder / "stranger")


def other_weights(folder, key):
    path = folder / "stranger/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")


def another_name(name):
    return lambda folder, key: resigned(folder, key, name=name)


def no_files(folder, key):
    (folder / "submission.yaml").write_text("format: 1\nkind: checkpoint\nname: stranger\n")


def code(folder, key):
    asked = {"norm": "l2", "eps": ["0.1"], "certificates": ["os:system"]}
    resigned(folder, key, evaluation=asked)
    read_bundle(folder).recipe()


BROKEN = {
    "an extra file": (touched("run.py"), "unexpected 'run.py'"),
    "an extra file beside the weights": (touched("stranger/run.py"), "unexpected file 'run.py'"),
    "a hidden file": (touched(".git"), "unexpected '.git'"),
    "other weights": (other_weights, r"model.safetensors: its sha256 is .* is not what was signed"),
    "another table": (touched("verdicts.parquet"), r"verdicts.parquet: its sha256 is"),
    "a link": (a_link, "is not a plain file"),
    "a linked folder": (a_linked_folder, "expected the checkpoint in a folder 'stranger'"),
    "another list": (touched("submission.yaml", b"format: 1\nkind: checkpoint\n"), "name: Field required"),
    "no list of files": (no_files, "files: Field required"),
    "an alias bomb": (touched("submission.yaml", b"a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]\n"), "unknown key 'a'"),
    "a list of another": (touched("signature", b"AAAA"), "signature"),
    "a name with a path": (another_name("../x"), "name: expected letters, digits"),
    "another name": (another_name("other"), "expected the checkpoint in a folder 'other'"),
    "a newer format": (lambda folder, key: resigned(folder, key, format=2), "format: expected 1, found '2'"),
    "a field more": (lambda folder, key: resigned(folder, key, run="x"), "unknown key 'run'"),
    "code for a certificate": (code, "certificates"),
    "no key": (lambda folder, key: (folder / "sender.pub").unlink(), "sender.pub missing"),
    "a pipe": (lambda folder, key: [(folder / "signature").unlink(), os.mkfifo(folder / "signature")], "is not a plain file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_forged_bundle_is_refused_before_anything_is_evaluated(sent, place, name):
    change, reason = BROKEN[name]
    with pytest.raises(UserError, match=reason) as refused:
        change(place / "bundle", sent / "key.pem")
        read_bundle(place / "bundle")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


def test_sizes_are_limits_before_anything_is_read(place):
    with pytest.raises(UserError, match=r"model.safetensors has [\d,]+ bytes, expected at most 100"):
        read_bundle(place / "bundle", Limits(weights=100))
    with (place / "bundle/verdicts.parquet").open("ab") as file:
        file.truncate(300 << 20)  # sparse: no disk is taken
    with pytest.raises(UserError, match=r"verdicts.parquet has 314,572,800 bytes"):
        read_bundle(place / "bundle")


def test_a_small_table_of_much_text_is_refused_before_it_is_in_memory(tmp_path, monkeypatch):
    text = pa.array(["x" * 1000]).take(pa.array(np.zeros(20_000, np.int64)))
    pq.write_table(pa.table({"method": text}), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 10_000
    monkeypatch.setattr(claims, "BYTES", 1 << 20)
    with pytest.raises(UserError, match="holds 20,000,000 bytes of text"):
        claims.read_claims(tmp_path / "bomb.parquet", "", "", "")
    monkeypatch.setattr(claims, "ROWS", 1000)
    with pytest.raises(UserError, match="has 20,000 rows"):
        claims.read_claims(tmp_path / "bomb.parquet", "", "", "")


def test_what_a_sender_can_not_pack(sent, tmp_path):
    with pytest.raises(UserError, match="folder that does not exist yet"):
        pack_checkpoint(sent / "stranger", sent / "bundle", out=sent / "reports", key=sent / "key.pem")
    with pytest.raises(UserError, match=r"no evaluation of .*rkhs-eval --model"):
        pack_checkpoint(sent / "stranger", tmp_path / "new", out=tmp_path, key=sent / "key.pem")
    (tmp_path / "bad.pem").write_text("no key")
    with pytest.raises(UserError, match="is no key: expected a PEM file"):
        pack_checkpoint(sent / "stranger", tmp_path / "new", out=sent / "reports", key=tmp_path / "bad.pem")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pem"]


def test_a_key_that_is_made_is_told_with_its_path_once_and_what_is_lost_with_it(sent, place, monkeypatch):
    """The fault: ~/.config/robustbench_rkhs/sender.pem was made without a word."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "config"))
    given = {"out": sent / "reports"}
    for key, kept in ((None, place / "config/robustbench_rkhs/sender.pem"), (place / "mine.pem", place / "mine.pem")):
        for number in range(2):
            said = []
            pack_checkpoint(sent / "stranger", place / f"{kept.stem}{number}", key=key, tell=said.append, **given)
            assert kept.is_file() and len(said) == (number == 0)
            assert all(line.startswith(f"new key: {kept}: keep it") and "loses the name" in line for line in said)
    (place / "taken").mkdir()
    with pytest.raises(UserError, match=r"cannot read the key .*is a directory"):
        pack_checkpoint(sent / "stranger", place / "no", key=place / "taken", **given)
    (place / "mine.pem").write_text("-----BEGIN x")
    with pytest.raises(UserError, match="is no key: expected a PEM file") as refused:
        pack_checkpoint(sent / "stranger", place / "no", key=place / "mine.pem", **given)
    assert "://" not in str(refused.value)


def test_adversarial_images_in_a_bundle(sent, place):
    loaded = checkpoint.load(sent / "stranger")
    made = EvalRecipe(**SETTINGS, samples=10)
    where = {"name": "stranger", "folder": place / "out/verdicts", "adversarials": place / "its.npz"}
    evaluate(loaded.model, loaded.recipe.data.test(), made, **where)
    shutil.copytree(sent / "stranger", place / "checkpoints/stranger")
    found = pack_adversarials(place / "its.npz", place / "images", key=sent / "key.pem")
    assert sorted(found.stated.files) == ["adversarials.npz", "sender.pub", "verdicts.parquet"]
    said = list(submit_bundle(place / "images", sample=5, device="cpu", out=place / "out", publish=False))
    assert "would be accepted" in said[-1] and not (place / "out/submitted").exists()
    list(submit_bundle(place / "images", sample=5, device="cpu", out=place / "out"))
    resigned(place / "images", sent / "key.pem", name="another")
    with pytest.raises(UserError, match=r"is of the model 'stranger', submission.yaml names 'another'"):
        list(submit_bundle(place / "images", sample=5, device="cpu", out=place / "out"))
    assert verdicts.read_all(place / "out/submitted")


def broken_images(sent, place, model, name="stranger"):
    """A file of adversarial images of this model, under a name."""
    where = {"name": name, "folder": place / "their/verdicts", "adversarials": place / f"{name}.npz"}
    loaded = checkpoint.load(sent / "stranger")
    evaluate(model, loaded.recipe.data.test(), EvalRecipe(**SETTINGS, samples=10), **where)
    return place / f"{name}.npz"


def test_adversarial_images_of_an_accepted_model_are_checked_by_the_weights_that_were_evaluated(sent, place):
    shutil.copytree(place / "bundle", place / "merged/stranger-1")
    submitted(place)
    (row,) = verdicts.read_all(place / "out/verdicts")
    kept = place / "out/accepted" / row.about.key[:16] / "stranger"
    assert sorted(one.name for one in kept.iterdir()) == ["README.md", "config.json", "model.safetensors", "recipe.yaml"]
    assert all((one.read_bytes() == (sent / "stranger" / one.name).read_bytes()) for one in kept.iterdir())
    assert (place / "out/accepted/.gitignore").is_file() and not (place / "out/submissions/stranger").exists()
    shutil.rmtree(place / "bundle")
    loaded = checkpoint.load(sent / "stranger")
    images = broken_images(sent, place, loaded.model)
    pack_adversarials(images, place / "images", key=sent / "key.pem", out=place / "out")
    both = {"device": "cpu", "out": place / "out"}
    found = check_bundle(place / "images", lambda line: None, sample=5, **both)
    assert found.accepted is True, found.reason
    assert "accepted" in list(gate.submit_adversarials(images, **both))[-2]
    (given,) = verdicts.read_all(place / "out/submitted")
    assert given.about.key == row.about.key and len(given.table)
    out, _ = rkhs("verify", str(images), "--out", "out", folder=place)
    assert "0 refused" in out

    torch.nn.init.normal_(loaded.model[-1].bias, std=0.3)
    with pytest.raises(UserError, match=rf"'stranger' is the function {row.about.key[:12]} here, the file is of "):
        list(gate.submit_adversarials(broken_images(sent, place, loaded.model), **both))
    shutil.rmtree(place / "out/verdicts/stranger")  # taken off the board
    with pytest.raises(UserError, match="unknown model 'stranger'"):
        list(gate.submit_adversarials(images, **both))
    elsewhere = {
        "command": "rkhs-submit check images --known merged",
        "device": "cpu",
        "out": place / "elsewhere",
        "sample": 5,
    }  # a job in CI, which has merged bundles alone
    known = check_bundle(place / "images", lambda line: None, known=place / "merged", **elsewhere)
    assert known.accepted is True and known.command == f"rkhs-submit check {place / 'images'} --known merged", known.reason
    assert check_bundle(place / "images", lambda line: None, **elsewhere).accepted is False


def test_nothing_is_kept_of_what_was_not_accepted_and_what_is_evaluated_is_what_is_kept(sent, place, monkeypatch):
    submitted(place, publish=False)
    assert not (place / "out/accepted").exists() and not list((place / "out/submissions/stranger").glob(".sent*"))
    evaluations, before = gate.evaluations, (place / "bundle/stranger/model.safetensors").read_bytes()

    def swapped(path, *rest, **more):
        (place / "bundle/stranger/model.safetensors").write_bytes(b"other")  # the sender's own folder changes meanwhile
        return evaluations(path, *rest, **more)

    monkeypatch.setattr(gate, "evaluations", swapped)
    submitted(place)
    (kept,) = (place / "out/accepted").glob("*/stranger/model.safetensors")
    assert kept.read_bytes() == before


def test_a_full_disk_publishes_nothing(place, monkeypatch):
    def full(copy, out, key):
        raise Unwritable("no space left")

    monkeypatch.setattr(gate, "keep", full)
    with pytest.raises(Unwritable):
        submitted(place)
    assert not list((place / "out/verdicts").rglob("*.parquet"))


def test_only_new_bundles_of_a_folder_are_checked(place):
    for name in ("one", "two"):
        shutil.copytree(place / "bundle", place / "theirs" / name)
    shutil.copytree(place / "bundle", place / "known/one")
    assert [path.name for path in new_bundles(place / "theirs", place / "known")] == ["two"]
    (place / "known/one/stranger/README.md").write_text("another")
    assert [path.name for path in new_bundles(place / "theirs", place / "known")] == ["one", "two"]
    for number in range(6):
        (place / "theirs" / f"n{number}").mkdir()
    with pytest.raises(UserError, match="holds 8 new bundles"):
        new_bundles(place / "theirs")
    (place / "link").symlink_to(place / "theirs")
    with pytest.raises(UserError, match="is a link"):
        new_bundles(place / "link")


def test_what_is_no_bundle_is_an_error_with_the_near_name_and_not_a_refusal_to_be_shown_again(place):
    """The fault: `nope is refused: no bundle 'nope'`, then `the same again: rkhs-submit check nope`."""
    shutil.copytree(place / "bundle", place / "half")
    (place / "half/submission.yaml").unlink()
    (place / "r.json").write_text("{} x")
    for words, line in {
        ("check", "bundel"): "no bundle 'bundel'; did you mean 'bundle'?",
        ("check", "nope"): "no bundle 'nope'",
        ("check", "bundle", "--known", "hal"): "no folder of known bundles 'hal'; did you mean 'half'?",
        ("check", "bundle", "--known", "nowhere"): "no folder of known bundles 'nowhere'",
        ("check", "r.json"): "r.json is a file: expected a bundle, the folder that rkhs-submit ... --bundle writes",
        ("checkpoint", "bundel", "--eps", "1"): "no checkpoint folder 'bundel'; did you mean 'bundle'?",
        ("comment", "r.jsn"): "no file 'r.jsn'",
        ("comment", "s.json"): "no file 's.json'; its folder holds 'r.json'",
        ("comment", "r.json"): "r.json is not JSON: line 1, column 4: extra data",
    }.items():
        _, err = rkhs("submit", *words, "--quiet", folder=place, code=2)
        assert err == f"error: {line}\n"
    assert new_bundles(place / "half") == [place / "half"]
    with pytest.raises(UserError, match=r"half is no bundle: submission\.yaml is missing"):
        read_bundle(place / "half")


def test_the_commands_of_a_sender_and_of_a_check(sent, place):
    rkhs("submit", "check", "bundle", "--result", "r.json", "--sample", "0", folder=place, code=2)
    flags = ["--sample", "8", "--attack", "ddn:steps=5", "--no-diagnostics", "--samples", "12", "--device", "cpu", "--out", "out"]
    out, _ = rkhs("submit", "check", "bundle", *flags, "--result", "r.json", folder=place)
    (found,) = read_results(place / "r.json")
    assert found.accepted and f"--draw {found.seed}" in found.command and "--samples 12" in found.command
    out, _ = rkhs("submit", "comment", "r.json", folder=place)
    assert "would be accepted" in out and "Nothing is merged or published by it" in out
    (place / "bundle/run.py").write_text("")
    out, err = rkhs("submit", "check", "bundle", *flags, "--json", folder=place, code=2)
    (found,) = json.loads(out)["results"]
    assert found["accepted"] is False and "unexpected 'run.py'" in found["reason"] and "unexpected 'run.py'" in err
    _, err = rkhs("submit", "check", "bundle", "--bundle", "x", folder=place, code=2)
    assert "--bundle: not for a submission of check" in err


def test_the_comment_takes_a_result_for_data():
    evil = "](http://x) <img src=x> `rm` | @everyone\n# head"
    one = CheckResult(bundle="b", name=evil[:90], accepted=False, reason=evil, lines=(evil,), command=evil)
    text = comment([one])
    outside = "".join(part for number, part in enumerate(text.split("`")) if not number % 2)
    assert not any(word in outside for word in ("<img", "http", "@everyone", "# head")) and text.count("`") % 2 == 0
    assert "also changes `setup.cfg`" in comment([one], ["submissions/x/submission.yaml", "setup.cfg"])
    assert "Not checked" in comment([one], ["submissions/../setup.cfg"]) and "refused" in comment([one], ["submissions/x"])


@pytest.mark.parametrize("text", ["[]", "{}", '{"results": [1]}', '{"results": [{"bundle": "b", "run": 1}]}', "{"])
def test_a_forged_result_is_refused(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UserError):
        read_results(tmp_path / "r.json")


def test_the_command_that_shows_it_again(tmp_path):
    typed = "rkhs-submit check theirs --known known --draw 3 --attack ddn pgd --result r.json --limits seconds=1h --json"
    assert again(typed, tmp_path, 5) == f"rkhs-submit check {tmp_path} --attack ddn pgd --limits seconds=1h --draw 5"


def test_the_comment_names_the_bundle_as_it_lies_in_the_senders_repository(place):
    """By the line of the shipped workflow, which checks out the pull request in a folder of its own."""
    workflow = (ROOT / ".github/workflows/submission.yml").read_text()
    (line,) = [line for line in workflow.splitlines() if "rkhs-submit check" in line]
    words = line.split("&& ")[1]
    assert words.split()[2] == "sent/submissions"
    shutil.copytree(place / "bundle", place / "sent/submissions/bad")
    (place / "sent/submissions/bad/run.py").write_text("")
    (place / "submissions").mkdir()  # as that line does
    (bundle,) = new_bundles(Path(words.split()[2]), Path("submissions"))
    text = comment([check_bundle(bundle, print, sample=5, device="cpu", out=place / "out", command=words)])
    command = text.rpartition("The same on your machine: `")[2].partition("`")[0]
    assert command.split()[:3] == ["rkhs-submit", "check", "submissions/bad"] and "sent" not in text, text
    shutil.copytree(place / "sent/submissions/bad", place / "submissions/bad")  # as its sender has it
    _, err = rkhs(*command.removeprefix("rkhs-").split()[:3], "--out", "out", folder=place, code=2)
    assert "submissions/bad: unexpected 'run.py'" in err and "submissions/bad: unexpected 'run.py'" in text
    one = CheckResult(bundle="elsewhere/b", accepted=False, reason="elsewhere/b", command="rkhs-submit check elsewhere/b")
    assert (
        comment([one]).count("elsewhere/b") == 3
        and comment([CheckResult(bundle="", accepted=True, reason="abc")]).count("abc") == 1
    )


def test_a_pull_request_is_opened_from_a_branch_of_its_own(sent, place, monkeypatch):
    with pytest.raises(UserError, match="--pull-request needs gh, which is not installed"):
        monkeypatch.setenv("PATH", only_git(place))
        open_pull_request(place / "bundle", place / "clone")
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    for name, value in {**who, "GIT_CONFIG_GLOBAL": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    gh = place / "bin/gh"
    gh.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > ' + str(place / "asked") + "\necho https://example.org/pull/1\n")
    gh.chmod(0o755)

    def git(*words, at=place):
        return subprocess.run(["git", *words], cwd=at, check=True, capture_output=True, text=True).stdout

    git("init", "--bare", "--quiet", "-b", "main", "remote.git")
    git("clone", "--quiet", "remote.git", "clone")
    git("commit", "--quiet", "--allow-empty", "-m", "first", at=place / "clone")
    git("push", "--quiet", "origin", "HEAD:main", at=place / "clone")
    assert open_pull_request(place / "bundle", place / "clone") == "https://example.org/pull/1"
    (branch,) = [line.split()[-1] for line in git("branch", "--list", "submission-*", at=place / "remote.git").splitlines()]
    files = git("ls-tree", "-r", "--name-only", branch, at=place / "remote.git").splitlines()
    digest = read_bundle(place / "bundle").stated.files["verdicts.parquet"][:8]
    assert f"submissions/stranger-{digest}/submission.yaml" in files and len(files) == len(
        [one for one in (place / "bundle").rglob("*") if one.is_file()]
    )
    assert f"--head\n{branch}\n" in (place / "asked").read_text() and git("status", "--porcelain", at=place / "clone") == ""
    assert git("branch", "--list", at=place / "clone").split() == ["*", "main"]


def only_git(place):
    """A search path with git alone."""
    (place / "bin").mkdir()
    os.symlink(shutil.which("git"), place / "bin/git")
    return str(place / "bin")


def test_a_model_that_is_better_on_test_than_on_training_images_is_marked(sent):
    loaded = checkpoint.load(sent / "stranger")
    train = training_images(loaded.recipe.data)
    right, n = int((loaded.model(train.x).argmax(1) == train.y).sum()), len(train)
    p, q = 501 / 502, (right + 1) / (n + 2)
    found = above_training(loaded.model, train, 500, 500, "cpu")
    assert found.tripped and found.value == pytest.approx((p - q) / np.sqrt(p * (1 - p) / 502 + q * (1 - q) / (n + 2)))
    assert not above_training(loaded.model, train, round(500 * right / n), 500, "cpu").tripped
    test = loaded.recipe.data.test()
    settings = EvalRecipe(eps=(0.05,), attacks=(DDN(steps=2),), certificates=(), diagnostics=False)
    first = test.take(torch.arange(300))  # those it was trained on
    done = evaluate(loaded.model, first, settings, training=train, name="stranger")
    (entry,) = next(iter(board([done]).values()))
    assert entry.status == "ranked" and "doubtful: test_above_training, undiagnosed" in entry.marks
    assert "as after training on test images" in entry.doubts["test_above_training"]


def test_a_model_of_the_boards_images_is_held(sent):
    (own,) = verdicts.read_all(sent / "reports/verdicts")
    good = verdicts.Evaluation(own.table[own.table["index"].isin(sorted(own.table["index"].unique())[:30])], own.about)
    rest = own.table[~own.table["index"].isin(good.table["index"])].copy()
    rest.loc[:, "predicted"] = (rest["label"] + 1) % 10
    bad = verdicts.Evaluation(rest[rest["method"] == "prediction"], own.about)
    assert "standard errors" in foreseen(bad, good) and foreseen(good, good) == ""
