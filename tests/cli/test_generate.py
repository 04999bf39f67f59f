"""`unnoise generate` over a stand-in model: files, names, settings, making a picture again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from unnoise.images.files import read, save


def pixels(path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_one_picture_is_named_by_seed_and_prompt_and_the_seed_is_printed(fake):
    outcome = fake("generate", "A red apple!", "--seed", 7)
    assert outcome.code == 0
    assert outcome.out == f"{Path('outputs/0007-a-red-apple.png')}  seed 7\n"
    assert "dpmpp_2m" in outcome.err and "64x64" in outcome.err
    assert [path.name for path in Path("outputs").iterdir()] == ["0007-a-red-apple.png"]


def test_korean_letters_stay_in_the_name(fake):
    assert fake("generate", "빨간 사과", "--seed", 7).code == 0
    assert Path("outputs/0007-빨간-사과.png").exists()


@pytest.mark.parametrize("prompt", ["가" * 500, "🍎", "../../etc", "a/b\\c:d", "."])
def test_any_prompt_gives_a_name_inside_the_folder(fake, prompt):
    assert fake("generate", prompt, "--seed", 1, "--out", "here").code == 0
    (path,) = Path("here").iterdir()
    assert len(path.name.encode()) < 200 and path.name.startswith("0001-")


def test_several_prompts_and_n_make_a_sheet(fake):
    outcome = fake("generate", "a red apple", "a blue car", "-n", 2, "--seed", 3, "--json")
    report = json.loads(outcome.out)
    assert [(p["prompt"], p["seed"]) for p in report["pictures"]] == [
        ("a red apple", 3),
        ("a red apple", 4),
        ("a blue car", 5),
        ("a blue car", 6),
    ]
    assert all(Path(p["path"]).exists() for p in report["pictures"]) and Path(report["sheet"]).name == "sheet.png"
    assert report["settings"]["num_inference_steps"] == 3 and "prompt" not in report["settings"] and report["seconds"] >= 0


def test_nothing_is_overwritten(fake):
    paths = [
        json.loads(fake("generate", "an apple", "--seed", 7, "--json", "--out", "apple.png").out)["pictures"][0]["path"] for _ in "123"
    ]
    assert paths == ["apple.png", "apple-2.png", "apple-3.png"]


def test_a_random_seed_is_printed(fake):
    seeds = {json.loads(fake("generate", "an apple", *extra, "--json").out)["pictures"][0]["seed"] for extra in ((), ("--seed", -1), ())}
    assert len(seeds) == 3 and -1 not in seeds


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_from_makes_the_same_pixels_again(fake, ending):
    options = ["--seed", 9, "--steps", 4, "--guidance", 3.25, "--sampler", "euler", "--size", "48x32", "--negative-prompt", "blurry, 흐림"]
    assert fake("generate", 'a "red", apple\nwith: a worm', *options, "--out", f"first.{ending}").code == 0
    outcome = fake("generate", "--from", f"first.{ending}", "--out", f"second.{ending}")
    assert outcome.code == 0 and "note:" not in outcome.err
    assert pixels(f"first.{ending}") == pixels(f"second.{ending}")
    assert read(f"first.{ending}") == read(f"second.{ending}")


def test_an_explicit_option_overrides_the_recorded_one_and_says_so(fake):
    fake("generate", "an apple", "--seed", 9, "--steps", 4, "--out", "first.png")
    outcome = fake("generate", "--from", "first.png", "--steps", 5, "--seed", 9, "--out", "second.png")
    assert outcome.err.splitlines()[0] == "note: --steps: 5 instead of 4 in 'first.png'"
    assert outcome.err.count("note:") == 1
    assert read("second.png").settings["num_inference_steps"] == 5 and read("second.png").settings["prompt"] == "an apple"


def test_a_changed_model_is_noticed(fake):
    fake("generate", "an apple", "--seed", 9, "--out", "first.png")
    with Image.open("first.png") as image:
        save(image, "older.png", {**read("first.png").settings, "model_hash": "0000"})
    assert "model_hash was '0000'" in fake("generate", "--from", "older.png", "--out", "second.png").err


def test_a_picture_of_another_program_gives_its_settings(fake):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", "a cat, sitting\nSteps: 6, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 32x32, Model: emoji")
    Image.new("RGB", (4, 4)).save("theirs.png", pnginfo=info)
    outcome = fake("generate", "--from", "theirs.png", "--out", "ours.png")
    assert outcome.code == 0 and "another program" in outcome.err
    ours = read("ours.png").settings
    assert (ours["prompt"], ours["num_inference_steps"], ours["sampler"], ours["width"], ours["seed"]) == (
        "a cat, sitting",
        6,
        "euler",
        32,
        5,
    )


def test_no_metadata_keeps_the_mark_only(fake):
    fake("generate", "a secret", "--seed", 7, "--no-metadata", "--out", "apple.png")
    data = Path("apple.png").read_bytes()
    assert b"secret" not in data and b"Steps" not in data and b"trainedAlgorithmicMedia" in data


def test_what_the_model_did_not_read_is_noticed(fake):
    long, longer = " ".join("abcdefghijklmno"), " ".join("abcdefghijklmnop")
    outcome = fake("generate", long, "an apple", longer, "-n", 2, "--seed", 7, "--json")
    notes = [line for line in outcome.err.splitlines() if "did not fit" in line]
    assert notes == [
        f'note: 1 token of "{long}" did not fit and was ignored',
        f'note: 2 tokens of "{longer}" did not fit and were ignored',
    ]
    both = fake("generate", long, "--negative-prompt", "blurry", "--out", "both.png").err
    assert f'note: 1 token of "{long}" and its negative prompt did not fit and was ignored' in both
    report = json.loads(outcome.out)
    assert "dropped_tokens" not in report["settings"]
    with Image.open(report["pictures"][0]["path"]) as image:
        assert "ropped" not in image.info["parameters"] and '"dropped_tokens": 1' in image.info["unnoise"]
    again = fake("generate", "--from", report["pictures"][0]["path"], "--out", "again.png")
    assert again.code == 0 and again.err.count("note:") == 1


DAMAGED = {  # a record that is JSON and no record of ours
    "no prompt": ({"model": "emoji"}, "its prompt is None, expected a text"),
    "a model that is a list": ({"prompt": "x", "model": ["emoji"]}, "its model is ['emoji'], expected a text"),
    "a precision that is a list": ({"prompt": "x", "model": "emoji", "dtype": []}, "its dtype is [], expected a text"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_record_is_refused_in_one_line(fake, case):
    from PIL.PngImagePlugin import PngInfo

    record, expected = DAMAGED[case]
    info = PngInfo()
    info.add_text("unnoise", json.dumps(record))
    Image.new("RGB", (4, 4)).save("damaged.png", pnginfo=info)
    outcome = fake("generate", "--from", "damaged.png")
    assert (outcome.code, outcome.out) == (2, "") and outcome.err.count("\n") == 1, outcome
    assert f"the settings in 'damaged.png' are damaged: {expected}" in outcome.err


def test_the_help_says_what_a_model_may_be(fake):
    assert "or a .safetensors file" in " ".join(fake("generate", "--help").out.split())


def test_quiet_prints_nothing(fake):
    assert fake("generate", "a", "b", "--quiet")[1:] == ("", "")


def test_words_without_quotes_are_noticed(fake):
    assert "3 prompts of one word" in fake("generate", "a", "red", "apple").err


@pytest.mark.parametrize("verb, key", [("samplers", "dpmpp_2m"), ("models", "emoji")])
def test_listings(fake, verb, key):
    assert key in fake(verb).out
    assert json.loads(fake(verb, "--json").out)[verb][0]["name"] == key


def test_square_brackets_are_no_markup(fake):
    assert "multistep [second] order" in fake("samplers").out
