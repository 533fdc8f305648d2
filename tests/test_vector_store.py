"""The index as a vector store of LlamaIndex's own machinery."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import VectorIndexAutoRetriever, VectorIndexRetriever
from llama_index.core.schema import BaseNode, ImageNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    MetadataInfo,
    VectorStoreInfo,
    VectorStoreQuery,
)
from llama_index.core.vector_stores.types import VectorStoreQueryMode

from llama_index_colqwen import ColQwenIndex, ColQwenVectorStore, InvalidOptionError, MilvusPageStore, QueryError
from llama_index_colqwen.retriever import Mode
from tests.recording_llm import SeeingLLM
from tests.test_index import make_document

WORDS = ["tide gauge", "tide tables of the harbour", "pump and valve", "valve of the pump leaks"]
UNUSED = MockEmbedding(embed_dim=1)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[ColQwenIndex]:
    with ColQwenIndex(MilvusPageStore(tmp_path / "p.db")) as made:
        yield made


@pytest.fixture
def documents(tmp_path: Path) -> list[BaseNode]:
    return [
        make_document(tmp_path, number, text, document_id="ab"[number // 3], year=2020 + number)
        for number, text in enumerate(WORDS, start=1)
    ]


@pytest.fixture
def store(index: ColQwenIndex, documents: list[BaseNode]) -> ColQwenVectorStore:
    index.insert_nodes(documents)
    return ColQwenVectorStore(index)


def only(key: str, value: str | int, operator: FilterOperator = FilterOperator.EQ) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


def test_a_pipeline_writes_pages_and_keeps_them_up_to_date(index: ColQwenIndex, documents: list[BaseNode]) -> None:
    pipeline = IngestionPipeline(
        transformations=[UNUSED],
        vector_store=ColQwenVectorStore(index),
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )
    assert len(pipeline.run(documents=documents)) == 4
    assert [node.text for node in index.nodes()] == WORDS
    documents[0].set_content("tide gauge of the harbour")
    changed = pipeline.run(documents=documents[:3])
    assert [node.node_id for node in changed] == [documents[0].node_id]
    assert [node.text for node in index.nodes()] == ["tide gauge of the harbour", *WORDS[1:3]]


async def test_a_pipeline_works_in_the_event_loop(index: ColQwenIndex, documents: list[BaseNode]) -> None:
    await IngestionPipeline(transformations=[UNUSED], vector_store=ColQwenVectorStore(index)).arun(documents=documents)
    assert index.store.count() == 4


def test_pieces_of_pages_are_refused_in_a_pipeline(index: ColQwenIndex, documents: list[BaseNode]) -> None:
    documents[0].set_content("One sentence. " * 100)
    splitting = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=40, chunk_overlap=0), UNUSED],
        vector_store=ColQwenVectorStore(index),
    )
    with pytest.raises(InvalidOptionError, match="piece of page|no page image"):
        splitting.run(documents=documents[:1])
    assert index.store.count() == 0


async def test_a_vector_store_index_finds_pages_with_their_images(store: ColQwenVectorStore) -> None:
    made = VectorStoreIndex.from_vector_store(store, embed_model=UNUSED)
    retriever = made.as_retriever(similarity_top_k=2)
    for hits in (retriever.retrieve("valve leaks"), await retriever.aretrieve("valve leaks")):
        assert [hit.node.node_id for hit in hits] == ["b-p00004", "b-p00003"]
        assert hits[0].get_score() > hits[1].get_score() > 0
        assert all(isinstance(hit.node, ImageNode) and hit.node.image_path for hit in hits)
    filtered = made.as_retriever(similarity_top_k=2, filters=only("year", 2024, FilterOperator.LT))
    assert [hit.node.metadata["year"] for hit in filtered.retrieve("valve leaks")][0] == 2023
    of_one = made.as_retriever(similarity_top_k=4, doc_ids=["a"])
    assert {hit.node.metadata["document_id"] for hit in of_one.retrieve("valve leaks")} == {"a"}
    llm = SeeingLLM()
    assert str(RetrieverQueryEngine.from_args(retriever, llm=llm, multimodal=True).query("valve leaks")) == "2 images"


def test_a_storage_context_writes_through_it(index: ColQwenIndex, documents: list[BaseNode]) -> None:
    context = StorageContext.from_defaults(vector_store=ColQwenVectorStore(index))
    made = VectorStoreIndex(documents, storage_context=context, embed_model=UNUSED)
    assert [node.text for node in index.nodes()] == WORDS
    made.delete_nodes([documents[0].node_id])
    assert index.store.count() == 3


def test_only_named_nodes_are_ranked(store: ColQwenVectorStore, index: ColQwenIndex) -> None:
    made = VectorStoreIndex.from_vector_store(store, embed_model=UNUSED)
    ids = ["a-p00001", "b-p00003"]
    hits = VectorIndexRetriever(made, node_ids=ids, similarity_top_k=4).retrieve("valve tide")
    assert {hit.node.node_id for hit in hits} == set(ids)
    everywhere = {hit.node.node_id: hit.score for hit in index.as_retriever(similarity_top_k=4).retrieve("valve tide")}
    assert {hit.node.node_id: hit.score for hit in hits}.items() <= everywhere.items()


@pytest.mark.parametrize(("mode", "ours"), [("default", "visual"), ("text_search", "text"), ("hybrid", "hybrid")])
def test_llamaindexs_modes_rank_by_what_ours_do(
    store: ColQwenVectorStore, index: ColQwenIndex, mode: str, ours: Mode
) -> None:
    made = VectorStoreIndex.from_vector_store(store, embed_model=UNUSED)
    retriever = made.as_retriever(vector_store_query_mode=VectorStoreQueryMode(mode))
    expected = index.as_retriever(similarity_top_k=2, mode=ours).retrieve("valve leaks")
    found = [(hit.node.node_id, hit.score) for hit in retriever.retrieve("valve leaks")]
    assert found == [(hit.node.node_id, hit.score) for hit in expected]
    others = index.as_retriever(similarity_top_k=2, mode="text" if ours != "text" else "visual").retrieve("valve leaks")
    assert found != [(hit.node.node_id, hit.score) for hit in others]


def test_an_auto_retriever_sets_the_filters_itself(store: ColQwenVectorStore) -> None:
    llm = SeeingLLM(
        answer='{"query": "tide", "filters": [{"key": "year", "value": 2022, "operator": "=="}], "top_k": null}'
    )
    info = VectorStoreInfo(
        content_info="Pages of reports.",
        metadata_info=[MetadataInfo(name="year", type="int", description="Of the report.")],
    )
    made = VectorStoreIndex.from_vector_store(store, embed_model=UNUSED)
    retriever = VectorIndexAutoRetriever(made, vector_store_info=info, llm=llm, similarity_top_k=2)
    assert [hit.node.node_id for hit in retriever.retrieve("tides in 2022")] == ["a-p00002"]


async def test_nodes_are_read_and_deleted_by_ids_and_filters(store: ColQwenVectorStore, index: ColQwenIndex) -> None:
    ids = [node.node_id for node in index.nodes()]
    assert [node.node_id for node in store.get_nodes()] == ids
    assert [node.node_id for node in await store.aget_nodes([ids[2], "unknown", ids[0]])] == [ids[2], ids[0]]
    assert [node.node_id for node in store.get_nodes(ids[:2], only("year", 2022))] == [ids[1]]
    store.delete_nodes(ids[:2], only("year", 2022))
    assert index.store.page_ids() == [ids[0], *ids[2:]]
    await store.adelete_nodes([ids[0]])
    await store.adelete("b")
    assert index.store.count() == 0


async def test_cleared_it_can_be_written_again(
    store: ColQwenVectorStore, index: ColQwenIndex, documents: list[BaseNode]
) -> None:
    await store.aclear()
    assert index.store.count() == 0
    assert await store.async_add(documents[:1]) == [documents[0].node_id]
    assert [hit.node.node_id for hit in index.as_retriever().retrieve("tide")] == [documents[0].node_id]


def test_what_it_cannot_do_is_said(store: ColQwenVectorStore) -> None:
    with pytest.raises(QueryError, match="no words"):
        store.query(VectorStoreQuery(query_embedding=[0.0]))
    with pytest.raises(InvalidOptionError, match="default, text_search, hybrid; got 'sparse'"):
        store.query(VectorStoreQuery(query_str="tide", mode=VectorStoreQueryMode.SPARSE))
    query = VectorStoreQuery(query_str="tide", node_ids=["a-p00001"], mode=VectorStoreQueryMode.HYBRID)
    with pytest.raises(InvalidOptionError, match="node_ids, pages are found with the mode default; got 'hybrid'"):
        store.query(query)
    with pytest.raises(InvalidOptionError, match="index is a ColQwenIndex; got str"):
        ColQwenVectorStore("./colqwen.db")  # type: ignore[arg-type]
