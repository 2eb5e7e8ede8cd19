"""Protobuf's text format, read by Triton's protobuf."""

from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from export.triton.protobuf_text import as_text, map_entries


@given(st.dictionaries(st.text(), st.text()), st.lists(st.integers(0, 2**31 - 1)), st.booleans())
def test_protobuf_reads_the_text_back(values: dict[str, str], sizes: list[int], flag: bool) -> None:
    message = {
        "parameters": map_entries({key: {"string_value": value} for key, value in values.items()}),
        "dynamic_batching": {"preferred_batch_size": sizes, "preserve_ordering": flag},
    }
    config = text_format.Parse(as_text(message), model_config_pb2.ModelConfig())
    assert {key: one.string_value for key, one in config.parameters.items()} == values
    assert list(config.dynamic_batching.preferred_batch_size) == sizes
    assert config.dynamic_batching.preserve_ordering == flag
