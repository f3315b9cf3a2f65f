"""Every token source: what it gives, that held-out text is never trained on, and that bad input is refused by name."""

from __future__ import annotations

import dataclasses
import lzma
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from trimtab.data import Classics, CorpusError, TextFiles, TokenData, TokenFiles, ZipfMarkov, catalogue
from trimtab.data import classics as classics_module
from trimtab.data.batches import held_out_batch, training_batch
from trimtab.data.classics import TEXTS, documents, read_text
from trimtab.data.source import entropy

PROSE = "It is a truth universally acknowledged, that a single man must be in want of a wife — indeed.\n" * 200


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    path = tmp_path / "prose.txt"
    path.write_text(PROSE, encoding="utf-8")
    return path


# Classics

BEGINNINGS = {
    "Persuasion": b"Persuasion\n\n\nby\n\nJane Austen",
    "Twelfth Night": b"# Twelfth Night\n",
    "Richard II": b"# Richard II\n",
    "The Tempest": b"# The Tempest\n",
    "Macbeth": b"# Macbeth\n",
    "Ruth": b"Now it came to pass in the days when the judges",
    "Isaiah": b"The vision of Isaiah",
    "John": b"In the beginning was the Word",
}
ENDS = {
    "Persuasion": b"in its national importance.\n\n\n\nFinis\n\n",
    "Twelfth Night": b"And we'll strive to please you every day.\n\nExit\n\n\n",
    "Richard II": b"In weeping after this untimely bier.\n\nExeunt\n\n\n",
    "The Tempest": b"Let your indulgence set me free.\n\n\n",
    "Macbeth": b"see us crown'd at Scone.\n\nFlourish. Exeunt\n\n\n",
    "Ruth": b"And Obed begat Jesse, and Jesse begat David.\n",
    "Isaiah": b"abhorring unto all flesh.\n",
    "John": b"the books that should be written. Amen.\n",
}


def test_every_held_out_document_starts_and_ends_where_it_should() -> None:
    found = {title: text.tobytes() for title, text in documents().items()}
    assert found.keys() == BEGINNINGS.keys()
    for title, text in found.items():
        assert text.startswith(BEGINNINGS[title]), title
        assert text.endswith(ENDS[title]), title


def test_every_byte_of_the_texts_is_either_trained_on_or_held_out() -> None:
    data = Classics().load()
    held_out = sum(len(part) for part in data.held_out.values())
    assert len(data.train) + held_out == 13_330_459
    assert held_out == sum(len(text) for text in documents().values())
    counts = Counter(np.bincount(data.train, minlength=256).tolist())
    assert sum(counts.values()) == 256
    whole = sum(np.bincount(np.frombuffer(read_text(text), dtype=np.uint8), minlength=256) for text in TEXTS)
    parts = [data.train, *data.held_out.values()]
    assert np.array_equal(sum(np.bincount(part, minlength=256) for part in parts), whole)


def test_no_held_out_document_is_in_the_training_text() -> None:
    train = Classics().load().train.tobytes()
    for title, text in documents().items():
        raw = text.tobytes()
        for start in np.linspace(0, len(raw) - 400, 7).astype(int):
            assert raw[start : start + 400] not in train, f"{title} at {start}"


def test_held_out_parts_are_named_after_the_texts_and_hold_the_documents_in_order() -> None:
    held_out = Classics().load().held_out
    assert list(held_out) == ["austen", "shakespeare", "kjv"]
    by_title = documents()
    plays = [by_title[title].tobytes() for title in ("Twelfth Night", "Richard II", "The Tempest", "Macbeth")]
    assert held_out["shakespeare"].tobytes() == b"".join(plays)
    assert held_out["austen"].tobytes() == by_title["Persuasion"].tobytes()


def test_the_chance_levels_of_the_classics_are_those_of_english_bytes() -> None:
    data = Classics().load()
    assert data.log_vocab == math.log(256)
    assert 2.9 < data.unigram_entropy < 3.3
    assert data.bytes_per_token == 1.0
    assert data.entropy_rate is None


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.file)
def test_a_damaged_text_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: object) -> None:
    assert isinstance(text, classics_module.Text)
    folder = tmp_path / "data" / "classics_text"
    folder.mkdir(parents=True)
    monkeypatch.setattr(classics_module, "files", lambda package: tmp_path)
    with pytest.raises(CorpusError, match=f"{text.file}: cannot be read"):
        read_text(text)
    packed = folder / text.file
    for content, problem in [
        (b"", "cannot be read|damaged"),
        (b"not xz", "cannot be read"),
        (lzma.compress(b"other text"), "damaged"),
        (lzma.compress(b"x" * 10_000)[:-20], "cannot be read"),
    ]:
        packed.write_bytes(content)
        with pytest.raises(CorpusError, match=f"{text.file}.*({problem}).*install trimtab again"):
            read_text(text)


def test_one_changed_byte_of_a_text_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = TEXTS[2]
    whole = bytearray(read_text(text))
    whole[1234] ^= 1
    folder = tmp_path / "data" / "classics_text"
    folder.mkdir(parents=True)
    (folder / text.file).write_bytes(lzma.compress(bytes(whole), preset=0))
    monkeypatch.setattr(classics_module, "files", lambda package: tmp_path)
    with pytest.raises(CorpusError, match="SHA-256 differs"):
        read_text(text)


def test_another_expected_hash_refuses_the_packed_text() -> None:
    with pytest.raises(CorpusError, match=r"austen.txt.xz: the text is damaged"):
        read_text(dataclasses.replace(TEXTS[0], sha256="0" * 64))


@pytest.mark.parametrize("vocab_size", [255, 0, -1, 65_537])
def test_a_vocabulary_that_text_cannot_use_is_refused(vocab_size: int) -> None:
    with pytest.raises(ValueError, match="vocab_size must lie between 256"):
        Classics(vocab_size=vocab_size)


# Contract of the data


def test_entropy_is_that_of_a_plain_loop() -> None:
    tokens = np.random.default_rng(0).integers(7, size=1000) ** 2
    expected = 0.0
    for value in set(tokens.tolist()):
        share = tokens.tolist().count(value) / len(tokens)
        expected -= share * math.log(share)
    assert entropy(np.bincount(tokens)) == pytest.approx(expected, rel=1e-12)


def test_entropy_of_nothing_is_zero_and_of_a_uniform_law_the_logarithm() -> None:
    assert entropy(np.array([], dtype=np.int64)) == 0.0
    assert entropy(np.array([0, 0])) == 0.0
    assert entropy(np.array([5])) == 0.0
    assert entropy(np.full(8, 3)) == pytest.approx(math.log(8))


def test_unigram_entropy_is_that_of_the_training_tokens_alone() -> None:
    train = np.array([0, 0, 1, 1], dtype=np.uint8)
    data = TokenData(train, {"a": np.array([3] * 9, dtype=np.uint8)}, 4, 1.0)
    assert data.unigram_entropy == pytest.approx(math.log(2))


def test_the_fingerprint_notices_every_change_of_ids_split_and_vocabulary() -> None:
    def made(train: list[int], held_out: dict[str, list[int]], vocab_size: int = 9, kind: str = "u1") -> str:
        parts = {name: np.array(ids, dtype=kind) for name, ids in held_out.items()}
        return TokenData(np.array(train, dtype=kind), parts, vocab_size, 1.0).fingerprint

    base = made([1, 2, 3], {"a": [4], "b": [5]})
    assert base == made([1, 2, 3], {"b": [5], "a": [4]})
    others = [
        made([1, 2, 4], {"a": [4], "b": [5]}),
        made([1, 2], {"a": [3, 4], "b": [5]}),
        made([1, 2, 3], {"a": [5], "b": [4]}),
        made([1, 2, 3], {"a": [4], "c": [5]}),
        made([1, 2, 3], {"a": [4], "b": [5]}, vocab_size=10),
    ]
    assert len({base, *others}) == 6


def test_sources_are_found_by_the_snake_case_of_their_class() -> None:
    assert catalogue() == {
        "classics": Classics, "text_files": TextFiles, "token_files": TokenFiles, "zipf_markov": ZipfMarkov,
    }  # fmt: skip


# Zipf-Markov


@pytest.mark.parametrize("vocab_size", [2, 3, 7, 8, 64, 100])
def test_every_row_of_the_chain_is_a_permutation_of_the_law(vocab_size: int) -> None:
    source = ZipfMarkov(vocab_size=vocab_size)
    ranks = np.arange(vocab_size)
    for state in range(vocab_size):
        assert sorted(source.next_token(np.full(vocab_size, state), ranks).tolist()) == ranks.tolist()


def test_every_row_is_a_permutation_in_the_largest_vocabulary() -> None:
    source = ZipfMarkov(vocab_size=65_536)
    ranks = np.arange(65_536)
    for state in (0, 1, 32_767, 65_535):
        tokens = source.next_token(np.full(65_536, state), ranks)
        assert np.array_equal(np.sort(tokens), ranks)


def test_the_law_is_a_distribution_and_its_entropy_that_of_a_loop() -> None:
    source = ZipfMarkov(vocab_size=50, exponent=1.2)
    weights = [rank**-1.2 for rank in range(1, 51)]
    expected = -sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights)
    assert source.law.sum() == pytest.approx(1)
    assert source.entropy_rate == pytest.approx(expected, rel=1e-12)


def test_the_entropy_rate_is_the_conditional_entropy_of_what_is_drawn() -> None:
    source = ZipfMarkov(vocab_size=8, exponent=1.0, num_tokens=400_000, seed=3)
    tokens = source.load().train.astype(np.int64)
    pairs = np.bincount(tokens[:-1] * 8 + tokens[1:], minlength=64).reshape(8, 8)
    conditional = entropy(pairs.reshape(-1)) - entropy(pairs.sum(1))
    assert conditional == pytest.approx(source.entropy_rate, abs=0.005)


def test_the_next_token_depends_on_the_state() -> None:
    data = ZipfMarkov(vocab_size=64, num_tokens=400_000).load()
    assert data.entropy_rate is not None
    assert data.unigram_entropy > data.entropy_rate + 0.01


def test_rare_tokens_stay_rare() -> None:
    source = ZipfMarkov(vocab_size=64, num_tokens=300_000)
    assert source.blocks.tolist() == [0, 8]
    counts = np.bincount(source.load().train, minlength=64)
    for first, end in ((0, 8), (8, 64)):
        share = counts[first:end].sum() / counts.sum()
        assert share == pytest.approx(source.law[first:end].sum(), abs=0.005)


def test_the_chain_is_a_function_of_its_seed() -> None:
    one, same, other = (ZipfMarkov(vocab_size=64, num_tokens=10_000, seed=seed).load() for seed in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert len(one.train) == 10_000
    assert len(one.held_out["zipf_markov"]) == 1_000
    assert not np.array_equal(one.train[:1000], one.held_out["zipf_markov"])


@pytest.mark.parametrize(
    "settings",
    [
        {"vocab_size": 1}, {"vocab_size": 65_537}, {"exponent": 0.0}, {"exponent": math.nan}, {"exponent": math.inf},
        {"num_tokens": 9_999}, {"num_tokens": 10**9 + 1}, {"num_tokens": 10**12}, {"seed": -1},
    ],
    ids=str,
)  # fmt: skip
def test_a_chain_that_cannot_be_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        ZipfMarkov(**settings)  # pyright: ignore[reportArgumentType]


# The user's text


def test_text_is_split_at_the_end_of_each_file(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_bytes(b"a" * 2000)
    two.write_bytes(b"b" * 1000)
    data = TextFiles(paths=(str(one), str(two)), held_out_share=0.25).load()
    assert data.train.tobytes() == b"a" * 1500 + b"b" * 750
    assert data.held_out["text"].tobytes() == b"a" * 500 + b"b" * 250


@pytest.mark.parametrize("share", [0.1, 0.123, 0.5])
def test_text_is_never_cut_inside_a_character(tmp_path: Path, share: float) -> None:
    path = tmp_path / "emoji.txt"
    text = "aé€😀" * 700
    path.write_text(text, encoding="utf-8")
    data = TextFiles(paths=(str(path),), held_out_share=share).load()
    assert data.train.tobytes().decode() + data.held_out["text"].tobytes().decode() == text


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the file is empty"),
        (b"a" * 5000 + b"\0", "byte 5000 is NUL"),
        (b"a" * 3000 + b"\xff" + b"a" * 3000, "byte 3000 is not UTF-8"),
        (b"a" * 100, "too few"),
        (b"a" * 1100, "too few"),
        (b"a", "too few"),
    ],
    ids=["empty", "binary", "not UTF-8", "too short", "little held out", "one byte"],
)
def test_unusable_text_is_refused_by_name(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=problem) as caught:
        TextFiles(paths=(str(path),)).load()
    assert "mine.txt" in str(caught.value)


@pytest.mark.parametrize("content", [b"a", b"a" * 100], ids=["one byte", "too short"])
def test_short_text_is_refused_by_name_with_a_bpe_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=r"mine\.txt"):
        TextFiles(paths=(str(path),), vocab_size=300).load()


def test_a_share_that_holds_out_nothing_is_refused_with_a_bpe_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prose: Path
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    for vocab_size in (256, 300):
        with pytest.raises(CorpusError, match=r"prose\.txt \(held out\): 0 tokens are too few"):
            TextFiles(paths=(str(prose),), held_out_share=1e-20, vocab_size=vocab_size).load()


def test_a_file_name_that_is_too_long_is_refused(prose: Path) -> None:
    with pytest.raises(CorpusError, match=r"no such file.*check data\.text_files\.paths"):
        TextFiles(paths=(str(prose), "x" * 5000)).load()
    with pytest.raises(CorpusError, match=r"no such file.*check data\.token_files"):
        TokenFiles(train="x" * 5000, held_out=str(prose), vocab_size=9).load()


def test_a_missing_text_file_and_a_folder_are_refused_by_name(prose: Path) -> None:
    for path in (prose.parent / "missing.txt", prose.parent):
        with pytest.raises(CorpusError, match="no such file") as caught:
            TextFiles(paths=(str(prose), str(path))).load()
        assert str(path) in str(caught.value)


def test_text_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="paths is empty"):
        TextFiles(paths=())
    for share in (0.0, 0.51, -1.0, math.nan):
        with pytest.raises(ValueError, match="held_out_share"):
            TextFiles(paths=("a",), held_out_share=share)


# The user's tokens


def token_file(folder: Path, name: str, ids: np.ndarray, kind: str = "<u2") -> str:
    path = folder / name
    path.write_bytes(ids.astype(kind).tobytes())
    return str(path)


@pytest.mark.parametrize(("kind", "name"), [("<u2", "uint16"), ("<u4", "uint32")])
def test_token_files_are_read_as_they_were_written(tmp_path: Path, kind: str, name: str) -> None:
    ids = np.random.default_rng(0).integers(1000, size=3000)
    train, held_out = token_file(tmp_path, "train.bin", ids, kind), token_file(tmp_path, "val.bin", ids[:500], kind)
    data = TokenFiles(train=train, held_out=held_out, vocab_size=1000, dtype=name, bytes_per_token=3.5).load()  # pyright: ignore[reportArgumentType]
    assert data.train.tolist() == ids.tolist()
    assert data.held_out["held_out"].tolist() == ids[:500].tolist()
    assert data.bytes_per_token == 3.5


def test_bytes_per_token_is_unknown_unless_given(tmp_path: Path) -> None:
    train = token_file(tmp_path, "train.bin", np.arange(3000) % 9)
    assert math.isnan(TokenFiles(train=train, held_out=train, vocab_size=9).load().bytes_per_token)


@pytest.mark.parametrize("part", ["train", "held_out"])
def test_unusable_tokens_are_refused_by_name(tmp_path: Path, part: str) -> None:
    good = token_file(tmp_path, "good.bin", np.arange(3000) % 256)
    bad_id = np.arange(3000) % 256
    bad_id[1234] = 256
    odd = tmp_path / "odd.bin"
    odd.write_bytes(b"\0" * 4001)
    for path, problem in [
        (str(tmp_path / "missing.bin"), "no such file"),
        (str(tmp_path), "no such file"),
        (token_file(tmp_path, "empty.bin", np.arange(0)), "too few"),
        (token_file(tmp_path, "short.bin", np.arange(100)), "too few"),
        (str(odd), "4001 bytes are not whole uint16 ids"),
        (token_file(tmp_path, "bad_id.bin", bad_id), "id 256 at offset 1234 is outside the vocabulary of 256"),
    ]:
        paths = {"train": good, "held_out": good} | {part: path}
        with pytest.raises(CorpusError, match=problem) as caught:
            TokenFiles(**paths, vocab_size=256).load()  # pyright: ignore[reportArgumentType]
        assert path in str(caught.value)


@pytest.mark.parametrize("count", [256, 257, 5000])
@pytest.mark.parametrize("part", ["train", "held_out"])
def test_uint32_ids_read_as_uint16_are_refused_with_the_remedy(tmp_path: Path, part: str, count: int) -> None:
    ids = np.random.default_rng(0).integers(1000, size=count)
    paths = {name: token_file(tmp_path, f"{name}.bin", np.arange(3000) % 999) for name in ("train", "held_out")}
    paths[part] = token_file(tmp_path, f"{part}.bin", ids, "<u4")
    with pytest.raises(CorpusError, match=r'hold uint32 ids; set data\.token_files\.dtype = "uint32"') as caught:
        TokenFiles(**paths, vocab_size=1000).load()
    assert str(caught.value).startswith(paths[part])


def test_uint16_ids_with_many_zeros_are_read(tmp_path: Path) -> None:
    zeros = np.zeros(3000, dtype=np.int64)
    late = zeros.copy()
    late[2999] = 7  # a single odd offset that is not 0
    early = zeros.copy()
    early[::2] = 5
    early[1501] = 1
    for number, ids in enumerate((zeros, late, early, np.roll(early, 1), np.tile([0, 3], 2000))):
        path = token_file(tmp_path, f"{number}.bin", ids)
        assert TokenFiles(train=path, held_out=path, vocab_size=8).load().train.tolist() == ids.tolist()


def test_a_token_file_without_permission_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = token_file(tmp_path, "train.bin", np.arange(3000) % 9)
    monkeypatch.setattr("trimtab.data.token_files.np.fromfile", refused)
    with pytest.raises(CorpusError, match=r"train\.bin: cannot be read \(Permission denied\)"):
        TokenFiles(train=path, held_out=path, vocab_size=9).load()


def test_token_settings_that_cannot_be_are_refused() -> None:
    for vocab_size in (1, (1 << 24) + 1, 10**12):
        with pytest.raises(ValueError, match="vocab_size must lie between 2 and 16777216"):
            TokenFiles(train="a", held_out="b", vocab_size=vocab_size)
    for value in (-1.0, math.nan):
        with pytest.raises(ValueError, match="bytes_per_token"):
            TokenFiles(train="a", held_out="b", vocab_size=2, bytes_per_token=value)


# Batches

STREAM = np.arange(1000, dtype=np.uint16)


def test_a_batch_is_a_function_of_seed_and_step_alone() -> None:
    def drawn(seed: int, step: int) -> torch.Tensor:
        return training_batch(STREAM, seed=seed, step=step, batch_size=4, context=8)

    first = drawn(1, 5)
    torch.manual_seed(99)
    np.random.seed(99)
    drawn(1, 6)
    assert torch.equal(drawn(1, 5), first)
    assert not torch.equal(drawn(1, 6), first)
    assert not torch.equal(drawn(2, 5), first)


def test_a_batch_holds_windows_of_neighbouring_tokens() -> None:
    batch = training_batch(STREAM, seed=0, step=0, batch_size=50, context=8)
    assert batch.shape == (50, 9)
    assert batch.dtype is torch.int64
    assert torch.equal(batch - batch[:, :1], torch.arange(9).expand(50, 9))


def test_windows_reach_the_first_and_the_last_token_and_no_further() -> None:
    tokens = np.arange(12, dtype=np.uint8)
    seen = [training_batch(tokens, seed=0, step=step, batch_size=8, context=8) for step in range(20)]
    assert min(int(batch.min()) for batch in seen) == 0
    assert max(int(batch.max()) for batch in seen) == 11


def test_the_shortest_stream_gives_its_only_window_and_a_shorter_one_is_refused() -> None:
    batch = training_batch(STREAM[:9], seed=0, step=0, batch_size=2, context=8)
    assert batch.tolist() == [list(range(9))] * 2
    with pytest.raises(CorpusError, match=r"8 tokens are fewer than one sequence of 9; lower model\.context"):
        training_batch(STREAM[:8], seed=0, step=0, batch_size=2, context=8)


def test_the_held_out_batch_is_the_same_every_time_and_stays_inside_the_parts() -> None:
    parts = {"low": np.arange(300, dtype=np.uint16), "high": np.arange(1000, 1100, dtype=np.uint16)}
    batch = held_out_batch(parts, num_sequences=16, context=8)
    assert torch.equal(batch, held_out_batch(parts, num_sequences=16, context=8))
    assert torch.equal(batch - batch[:, :1], torch.arange(9).expand(len(batch), 9))
    assert len(batch) == 16
    assert int((batch[:, 0] < 1000).sum()) == 12
    assert {int(batch.min()), int(batch.max())} == {0, 1099}


def test_every_held_out_part_is_heard_however_small() -> None:
    parts = {"large": np.zeros(100_000, dtype=np.uint16), "small": np.ones(9, dtype=np.uint16)}
    assert held_out_batch(parts, num_sequences=4, context=8).max() == 1


def test_a_held_out_part_shorter_than_a_window_is_refused_by_name() -> None:
    with pytest.raises(CorpusError, match="held-out part small: 8 tokens"):
        held_out_batch({"small": STREAM[:8]}, num_sequences=4, context=8)
