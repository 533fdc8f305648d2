"""Milvus's own MaxSim: what is sent, read from the wire by a server that knows only how to answer.

No Milvus that has arrays of vectors runs here.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from pymilvus.grpc_gen import common_pb2, milvus_pb2, milvus_pb2_grpc, schema_pb2

from llama_index_colqwen import AnnIndex, InvalidOptionError, MilvusPageStore
from llama_index_colqwen.store import schema
from llama_index_colqwen.store.connection import MilvusConnection
from llama_index_colqwen.store.native_search import NativeSearch
from llama_index_colqwen.store.schema import CollectionDescription, PageEntry, PartOf, StoredVectors
from llama_index_colqwen.store.table import MilvusTable
from llama_index_colqwen.store.vector_cache import VectorCache
from llama_index_colqwen.store.vector_shards import VectorTables
from tests.fakes import FINGERPRINT, make_page, unit_rows

ANN = AnnIndex("HNSW", {"M": 16}, native=True)
DESCRIPTION = CollectionDescription(FINGERPRINT, "int8", "all", ANN)


class Recorder(milvus_pb2_grpc.MilvusServiceServicer):  # type: ignore[misc]
    """Answers what a client asks on its way, and keeps what it was sent."""

    def __init__(self) -> None:
        self.schema = schema_pb2.CollectionSchema()
        self.indexes: list[milvus_pb2.CreateIndexRequest] = []
        self.upserts: list[milvus_pb2.UpsertRequest] = []
        self.searches: list[milvus_pb2.SearchRequest] = []
        self.deletes: list[milvus_pb2.DeleteRequest] = []

    def Connect(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        return milvus_pb2.ConnectResponse(server_info=common_pb2.ServerInfo(build_tags="v2.6.4"), identifier=1)

    def GetVersion(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        return milvus_pb2.GetVersionResponse(version="v2.6.4")

    def CreateCollection(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.schema.ParseFromString(request.schema)
        return common_pb2.Status()

    def DescribeCollection(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        return milvus_pb2.DescribeCollectionResponse(schema=self.schema, collection_name=request.collection_name)

    def HasCollection(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        return milvus_pb2.BoolResponse(value=True)

    def CreateIndex(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.indexes.append(request)
        return common_pb2.Status()

    def LoadCollection(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        return common_pb2.Status()

    def GetLoadingProgress(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        return milvus_pb2.GetLoadingProgressResponse(progress=100)

    def Upsert(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.upserts.append(request)
        return milvus_pb2.MutationResult(upsert_cnt=request.num_rows)

    def Delete(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.deletes.append(request)
        return milvus_pb2.MutationResult()

    def Search(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802
        self.searches.append(request)
        ids = schema_pb2.IDs(str_id=schema_pb2.StringArray(data=["b:0011:0", "a:0022:0"]))
        found = schema_pb2.SearchResultData(
            num_queries=1, top_k=2, topks=[2], ids=ids, scores=[2.5, 1.5], primary_field_name="candidate_id"
        )
        return milvus_pb2.SearchResults(results=found)


@pytest.fixture
def recorder() -> Iterator[tuple[Recorder, str]]:
    server, records = grpc.server(ThreadPoolExecutor(4)), Recorder()
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(records, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield records, f"http://127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def search(recorder: tuple[Recorder, str], tmp_path: Path) -> Iterator[NativeSearch]:
    connection = MilvusConnection(recorder[1], None, "pages")
    schema._create_candidates(connection.client, "pages_candidates", PartOf("pages", "1"), DESCRIPTION, lite=False)
    pages = MilvusTable(connection, "pages", "page_id")
    vectors = VectorTables(connection, "pages", DESCRIPTION, sharded=False)
    cache = VectorCache(tmp_path, FINGERPRINT.dim, "int8")
    yield NativeSearch(connection, pages, vectors, cache, "pages_candidates", "all", ANN)
    connection.close()


def test_collection_has_an_array_of_vectors_with_an_index_by_maxsim(
    recorder: tuple[Recorder, str], search: NativeSearch
) -> None:
    [array] = recorder[0].schema.struct_array_fields
    assert array.name == "vectors"
    [vector] = array.fields
    assert (vector.element_type, vector.data_type) == (
        schema_pb2.DataType.FloatVector,
        schema_pb2.DataType.ArrayOfVector,
    )
    params = {pair.key: pair.value for pair in vector.type_params}
    assert (params["dim"], params["max_capacity"]) == ("4", "4096")
    said = {index.field_name: {pair.key: pair.value for pair in index.extra_params} for index in recorder[0].indexes}
    assert said["vectors[vector]"]["metric_type"] == "MAX_SIM_IP"
    assert said["vectors[vector]"]["index_type"] == "HNSW"


def test_page_is_one_row_with_all_its_vectors(recorder: tuple[Recorder, str], search: NativeSearch) -> None:
    vectors = unit_rows(0, 5)
    search._write([(make_page("a", year=2024), "a:0022", vectors)])
    [request] = recorder[0].upserts
    assert request.num_rows == 1
    by_name = {field.field_name: field for field in request.fields_data}
    assert list(by_name["candidate_id"].scalars.string_data.data) == ["a:0022:0"]
    assert b"2024" in by_name["metadata"].scalars.json_data.data[0]
    [array] = by_name["vectors"].struct_arrays.fields
    [sent] = array.vectors.vector_array.data
    np.testing.assert_allclose(np.array(sent.float_vector.data).reshape(-1, 4), vectors, atol=1e-6)


def test_query_is_one_search_for_pages(recorder: tuple[Recorder, str], search: NativeSearch) -> None:
    query = unit_rows(1, 3)
    assert search.best(query, 50, 'metadata["year"] == 2024') == ["b", "a"]
    [request] = recorder[0].searches
    params = {pair.key: pair.value for pair in request.search_params}
    assert request.nq == 1
    assert request.dsl == 'metadata["year"] == 2024'
    assert (params["anns_field"], params["metric_type"], params["topk"]) == ("vectors[vector]", "MAX_SIM_IP", "50")
    placeholders = common_pb2.PlaceholderGroup()
    placeholders.ParseFromString(request.placeholder_group)
    [placeholder] = placeholders.placeholders
    assert placeholder.type == common_pb2.PlaceholderType.EmbListFloatVector
    [value] = placeholder.values
    np.testing.assert_allclose(np.frombuffer(value, np.float32).reshape(-1, 4), query)


def test_replaced_vectors_are_deleted_by_key(recorder: tuple[Recorder, str], search: NativeSearch) -> None:
    search.remove([PageEntry("a", "d", "", "", StoredVectors("a:0022", 5), {})])
    assert [request.expr for request in recorder[0].deletes] == ['candidate_id in ["a:0022:0"]']


@pytest.mark.parametrize(
    ("where", "version"), [("file", "Milvus Lite"), ("lite_server", "Milvus Lite"), ("milvus_server", r"v2\.3\.5")]
)
def test_milvus_without_arrays_of_vectors_is_refused(
    where: str, version: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = tmp_path / "x.db" if where == "file" else request.getfixturevalue(where)
    with MilvusPageStore(uri, collection_name="native", ann_index=ANN, cache_dir=tmp_path) as store:
        with pytest.raises(InvalidOptionError, match=f"needs a Milvus server from 2.6.4 on, and .* is {version}"):
            store.open(FINGERPRINT)
        assert not [name for name in store._connection.client.list_collections() if name.startswith("native")]
