"""Read text, YAML and JSON files from users, with bounded size and errors that name file and line."""

from rllib_hpo.documents.json_reader import parse_json, read_json
from rllib_hpo.documents.scalars import Dialect
from rllib_hpo.documents.text import read_text, reading, reason
from rllib_hpo.documents.yaml_reader import Place, YamlLines, parse_value, read_documents, read_mapping

__all__ = [
    "Dialect",
    "Place",
    "YamlLines",
    "parse_json",
    "parse_value",
    "read_documents",
    "read_json",
    "read_mapping",
    "read_text",
    "reading",
    "reason",
]
