"""The pictures that a report shows: generated ones beside the real ones that they must be seen beside."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.evaluation.captions import ELSEWHERE, Request
from ldm.evaluation.feature_pass import Draw, Seen, batched, generated
from ldm.evaluation.reference_set import ReferenceSet
from ldm.evaluation.result_types import Closest, Pair, Shown
from ldm.metrics.mmap_tables import nearest, unit_rows
from ldm.metrics.picture_metric import Copies


def first_captions(
    requests: Sequence[Request], seen: Seen, gallery: ReferenceSet, *, samples: int
) -> list[Shown]:
    """The captions whose pictures were kept, each with the real picture nearest to the first of its own.

    Args:
        samples: pictures a caption.
    """
    network = next((name for name in seen.observed.features if name in gallery.features), None)
    if not seen.first or network is None:
        return []
    first = seen.observed.features[network][: len(seen.first) : samples]
    rows = nearest(unit_rows(first), unit_rows(gallery.features[network]), count=1)[1][:, 0].tolist()
    return [
        Shown(
            prompt=requests[number * samples].prompt,
            generated=torch.stack(seen.first[number * samples : (number + 1) * samples]),
            nearest=gallery.picture(row),
            right=_right_picture(gallery, requests[number * samples]),
        )
        for number, row in enumerate(rows)
    ]


def closest_pairs(
    copies: Copies,
    draw: Draw,
    requests: Sequence[Request],
    gallery: ReferenceSet,
    *,
    count: int,
    batch_size: int,
) -> Closest:
    """The generated pictures that are nearest to a real one; only their features were kept: they are
    generated once more.

    Args:
        copies: as a metric has judged the pictures.
        count: how many pairs.
    """
    chosen = [requests[number] for number in copies.generated[:count].tolist()]
    pictures = torch.cat([generated(draw, part) for part in batched(chosen, batch_size)])
    nearest_rows, distances = (found[:count].tolist() for found in (copies.real, copies.distance))
    return Closest(
        features=copies.features,
        quantile=copies.quantile,
        limit=copies.limit,
        copied=int(copies.copied.sum()),
        images=len(requests),
        pairs=[
            Pair(
                prompt=request.prompt,
                generated=picture,
                real=gallery.picture(row),
                split=gallery.split_of(row),
                distance=distance,
            )
            for request, picture, row, distance in zip(chosen, pictures, nearest_rows, distances, strict=True)
        ],
    )


def _right_picture(gallery: ReferenceSet, request: Request) -> Tensor | None:
    return None if request.row == ELSEWHERE else gallery.picture(request.row)
