"""The embedder with tiny real models, built here: random weights, wholly offline."""

from __future__ import annotations

import dataclasses
import importlib
import io
import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pytest
from PIL import Image

from llama_index_colqwen import (
    ColQwenError,
    EmbedderFingerprint,
    InvalidOptionError,
    MissingDependencyError,
    MultiVectorEmbedder,
    Page,
    QueryError,
    SentenceTransformersEmbedder,
    resolve_embedder,
)
from llama_index_colqwen.late_interaction.maxsim import maxsim
from tests.extras import needs_sentence_transformers
from tests.fakes import make_page
from tests.forks import in_fork, needs_fork

pytestmark = needs_sentence_transformers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, Qwen2VLConfig

_Module = TypeVar("_Module", bound="torch.nn.Module")

QUERIES = ["annual revenue", "x", "Which table of the report holds everything of 2024, and why?"]
SIZES = [(200, 260), (400, 300), (90, 70), (1200, 1600), (260, 200)]

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
)


def draw(model: _Module, seed: int = 0) -> _Module:
    """Draw a module's weights so that pages do not all look alike, in the order of their names."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight.ndim > 1:
                scale = 1.0 if "embed_tokens" in name else weight[0].numel() ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return model


def make_tokenizer() -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # Not all of what transformers exports is known to type checkers.
    transformers: Any = importlib.import_module("transformers")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    letters.add_special_tokens(SPECIAL)
    tokenizer: PreTrainedTokenizerBase = transformers.Qwen2TokenizerFast(
        tokenizer_object=letters, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None,
        bos_token=None, model_max_length=4096, padding_side="left",
    )  # fmt: skip
    return tokenizer


def make_config(tokenizer: PreTrainedTokenizerBase) -> Qwen2VLConfig:
    from transformers import Qwen2VLConfig

    ids = {token: tokenizer.get_vocab()[token] for token in SPECIAL}
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
    }  # fmt: skip
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    return Qwen2VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True, image_token_id=ids["<|image_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of models, as saved by the library and as they stand on the hub.

    trained: backbone, projection, mask and normalisation, as the library's own recipe for page images saves them.
    retriever: a `ColQwen2ForRetrieval`, without modules.json, as transformers saves it.
    bare: a backbone that was never trained for late interaction.
    text: a ColBERT, which sees no images.
    """
    import torch
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    transformers: Any = importlib.import_module("transformers")

    def save(backbone: Path, name: str, prompts: dict[str, str]) -> None:
        dense = Dense(32, 16, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings")
        modules = [Transformer(str(backbone)), draw(dense), MultiVectorMask(), Normalize("token_embeddings")]
        model = MultiVectorEncoder(modules=modules, device="cpu", prompts=prompts, local_files_only=True)
        model.save_pretrained(str(folder / name), create_model_card=False)

    folder = tmp_path_factory.mktemp("models")
    tokenizer = make_tokenizer()
    config = make_config(tokenizer)
    pixels = transformers.Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=64 * 28 * 28)

    draw(transformers.Qwen2VLModel(config)).save_pretrained(folder / "bare")
    videos = transformers.Qwen2VLVideoProcessor()
    transformers.Qwen2VLProcessor(pixels, tokenizer, videos, chat_template=TEMPLATE).save_pretrained(folder / "bare")
    save(folder / "bare", "trained", {"query": "Query: ", "document": ""})

    whole = transformers.ColQwen2Config(vlm_config=config.to_dict(), embedding_dim=16)
    draw(transformers.ColQwen2ForRetrieval(whole)).save_pretrained(folder / "retriever")
    transformers.ColQwen2Processor(pixels, tokenizer).save_pretrained(folder / "retriever")

    (folder / "words.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "table"]))
    bert = transformers.BertConfig(
        vocab_size=6, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(bert).save_pretrained(folder / "bert")
    transformers.BertTokenizerFast(str(folder / "words.txt")).save_pretrained(folder / "bert")
    save(folder / "bert", "text", {})
    return folder


@pytest.fixture(scope="session", params=["trained", "retriever"])
def embedder(models: Path, request: pytest.FixtureRequest) -> SentenceTransformersEmbedder:
    return SentenceTransformersEmbedder(str(models / request.param), device="cpu")


def page_of(image: Image.Image) -> Page:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return dataclasses.replace(make_page("page"), image=buffer.getvalue())


@pytest.fixture(scope="session")
def pages() -> list[Page]:
    """Make pages of noise, of different sizes."""
    noise = np.random.default_rng(0)
    return [page_of(Image.fromarray(noise.integers(0, 256, (high, wide, 3), np.uint8))) for wide, high in SIZES]


def test_pickled_without_its_weights(embedder: SentenceTransformersEmbedder) -> None:
    pickled = pickle.dumps(embedder)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).fingerprint == embedder.fingerprint


def changed(models: Path, tmp_path: Path, name: str, file: str, **tensors: torch.Tensor | None) -> Path:
    """Copy a model, with some weights of a file replaced, or removed where they are None."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(models / name, tmp_path / "changed")
    weights = {**load_file(folder / file), **{key.replace("__", "."): value for key, value in tensors.items()}}
    save_file({key: weight for key, weight in weights.items() if weight is not None}, folder / file, {"format": "pt"})
    return folder


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingDependencyError, match=r"llama-index-colqwen\[sentence-transformers\]"):
        SentenceTransformersEmbedder("vidore/colqwen2-v1.0-hf")


def test_it_is_an_embedder_and_every_vector_is_a_float32_unit_row(
    embedder: SentenceTransformersEmbedder, pages: list[Page]
) -> None:
    assert isinstance(embedder, MultiVectorEmbedder)
    assert embedder.dim == embedder.fingerprint.dim == 16
    for vectors in (*embedder.embed_pages(pages), *embedder.embed_queries(QUERIES)):
        assert vectors.dtype == np.float32
        assert vectors.shape[1] == 16
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_vectors_are_those_of_the_library(models: Path, pages: list[Page]) -> None:
    from sentence_transformers import MultiVectorEncoder

    for name in ("trained", "retriever"):
        embedder = SentenceTransformersEmbedder(str(models / name), device="cpu")
        library = MultiVectorEncoder(str(models / name), device="cpu", local_files_only=True)
        images = [page.open_image() for page in pages]
        by_library = [*library.encode_document(images, batch_size=1), *library.encode_query(QUERIES, batch_size=1)]
        ours = [*embedder.embed_pages(pages), *embedder.embed_queries(QUERIES)]
        for vectors, expected in zip(ours, by_library, strict=True):
            np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-5)


def test_a_page_has_a_vector_a_patch_and_a_token_of_the_template_and_none_for_padding(
    models: Path, pages: list[Page]
) -> None:
    # Sizes are rounded to patches of 28 pixels, at least 4 and at most 64 of them.
    patches = [7 * 9, 9 * 6, 3 * 2, 6 * 9, 9 * 7]
    # "user" is four letters; a line ends after it, and another after <|im_end|>.
    template = 1 + len("user\n") + 2 + 1 + 1
    embedder = SentenceTransformersEmbedder(str(models / "trained"), device="cpu")
    assert [len(vectors) - template for vectors in embedder.embed_pages(pages)] == patches


@pytest.mark.parametrize("name", ["trained", "retriever"])
def test_vectors_do_not_depend_on_the_batch_they_are_made_in(models: Path, pages: list[Page], name: str) -> None:
    single, batched = (SentenceTransformersEmbedder(str(models / name), "cpu", batch_size=size) for size in (1, 3))
    ones = [*single.embed_pages(pages), *single.embed_queries(QUERIES)]
    threes = [*batched.embed_pages(pages), *batched.embed_queries(QUERIES)]
    for one, three in zip(ones, threes, strict=True):
        np.testing.assert_allclose(one, three, atol=1e-5)


def test_a_page_is_most_like_itself(embedder: SentenceTransformersEmbedder, pages: list[Page]) -> None:
    vectors = embedder.embed_pages(pages)
    for number, page in enumerate(vectors):
        assert int(np.argmax([maxsim(page, other) for other in vectors])) == number


def test_images_of_any_mode_are_embedded(embedder: SentenceTransformersEmbedder) -> None:
    image = Image.linear_gradient("L")
    grey, colour, palette = embedder.embed_pages([page_of(image.convert(mode)) for mode in ("L", "RGB", "P")])
    np.testing.assert_allclose(grey, colour, atol=1e-5)
    assert palette.shape == colour.shape


def test_nothing_gives_nothing(embedder: SentenceTransformersEmbedder) -> None:
    assert embedder.embed_pages([]) == embedder.embed_queries([]) == []


@pytest.mark.parametrize("query", ["", "  \n"])
def test_blank_query_is_an_error(embedder: SentenceTransformersEmbedder, query: str) -> None:
    with pytest.raises(QueryError, match="empty"):
        embedder.embed_queries(["revenue", query])


def test_threads_get_the_vectors_that_one_thread_gets(embedder: SentenceTransformersEmbedder) -> None:
    expected = embedder.embed_queries(QUERIES)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(embedder.embed_queries, [QUERIES] * 8):
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)


@needs_fork
def test_fork_computes_the_same_with_an_embedder_that_was_used_before(
    embedder: SentenceTransformersEmbedder, pages: list[Page]
) -> None:
    expected = [*embedder.embed_queries(QUERIES), *embedder.embed_pages(pages)]
    found = in_fork(lambda: [*embedder.embed_queries(QUERIES), *embedder.embed_pages(pages)])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_pooling_keeps_one_vector_of_so_many_and_leaves_queries_alone(models: Path, pages: list[Page]) -> None:
    whole, pooled = (SentenceTransformersEmbedder(str(models / "trained"), "cpu", pool_factor=by) for by in (1, 3))
    for all_of, some in zip(whole.embed_pages(pages), pooled.embed_pages(pages), strict=True):
        assert len(some) == len(all_of) // 3
        np.testing.assert_allclose(np.linalg.norm(some, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(whole.embed_queries(["x"])[0], pooled.embed_queries(["x"])[0])
    assert whole.fingerprint != pooled.fingerprint


def test_half_precision_rows_are_exact_units_that_other_precisions_can_be_compared_with(
    models: Path, pages: list[Page]
) -> None:
    embedder = SentenceTransformersEmbedder(str(models / "trained"), "cpu", dtype="bfloat16")
    for vectors in embedder.embed_pages(pages):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert embedder.fingerprint == SentenceTransformersEmbedder(models / "trained", "cpu").fingerprint


def test_fingerprint_survives_json(embedder: SentenceTransformersEmbedder) -> None:
    fingerprint = embedder.fingerprint
    assert EmbedderFingerprint.from_json(fingerprint.to_json()) == fingerprint
    assert fingerprint.options == {"library": "sentence-transformers", "pool_factor": 1}
    again = resolve_embedder(EmbedderFingerprint.from_json(fingerprint.to_json()))
    assert isinstance(again, SentenceTransformersEmbedder)
    assert again.fingerprint == fingerprint


def test_fingerprint_follows_the_weights_and_not_the_model_card(models: Path, tmp_path: Path) -> None:
    def revision() -> str:
        return SentenceTransformersEmbedder(str(folder), "cpu").fingerprint.revision

    folder = shutil.copytree(models / "trained", tmp_path / "model")
    before = revision()
    (folder / "README.md").write_text("A card.")
    assert revision() == before
    shutil.copy(models / "trained" / "1_Dense" / "model.safetensors", folder / "other.safetensors")
    assert revision() != before


def test_weights_that_are_not_there_are_an_error_that_names_them(models: Path, tmp_path: Path) -> None:
    folder = changed(models, tmp_path, "retriever", "model.safetensors", embedding_proj_layer__weight=None)
    with pytest.raises(ColQwenError, match=r"lacks 1 of its weights \(embedding_proj_layer.weight\)"):
        SentenceTransformersEmbedder(str(folder), "cpu")


def test_model_that_was_never_trained_for_late_interaction_is_refused(models: Path) -> None:
    with pytest.raises(ColQwenError, match="the projection"):
        SentenceTransformersEmbedder(str(models / "bare"), "cpu")


def test_model_that_does_not_see_images_is_refused(models: Path) -> None:
    with pytest.raises(InvalidOptionError, match="does not see images"):
        SentenceTransformersEmbedder(str(models / "text"), "cpu")


def test_vectors_that_are_no_numbers_are_an_error(models: Path, tmp_path: Path) -> None:
    import torch

    nothing = {"linear__weight": torch.full((16, 32), torch.inf)}
    folder = changed(models, tmp_path, "trained", "1_Dense/model.safetensors", **nothing)
    with pytest.raises(ColQwenError, match="overflows in float32"):
        SentenceTransformersEmbedder(str(folder), "cpu")


def test_model_that_is_not_there_is_an_error_with_its_name(models: Path) -> None:
    with pytest.raises(ColQwenError, match="There is no folder .*nowhere"):
        SentenceTransformersEmbedder(str(models / "nowhere"), "cpu")


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"batch_size": 0}, {"pool_factor": 0}])
def test_options_that_mean_nothing_are_refused_before_anything_is_loaded(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        SentenceTransformersEmbedder("nowhere", **options)
