"""What results are called. The literature's own names belong to the Inception of 2015 and to nothing else."""

from types import MappingProxyType

LITERATURE = MappingProxyType(
    {
        ("fd", "inception"): "fid",
        ("kd", "inception"): "kid",
        ("kd_sd", "inception"): "kid_sd",
        ("is_mean", "inception_logits"): "is_mean",
        ("is_sd", "inception_logits"): "is_sd",
    }
)


def result_name(measure: str, features: str) -> str:
    """`<measure>_<features>`, or the literature's name where these are the features that it means."""
    return LITERATURE.get((measure, features), f"{measure}_{features}")
