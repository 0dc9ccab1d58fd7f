"""The pictures that a report shows: generated ones beside the real ones that they must be seen beside."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ldm.evaluation.captions import ELSEWHERE
from ldm.evaluation.feature_pass import Seen, batched
from ldm.evaluation.generation import Draw, Request
from ldm.evaluation.reference_set import Gallery
from ldm.evaluation.result_types import Closest, Pair, Shown
from ldm.metrics.memorisation import Memorisation, find_copies
from ldm.metrics.mmap_tables import Table
from ldm.metrics.neighbours import nearest
from ldm.metrics.picture_metric import PictureMetric


def first_captions(requests: Sequence[Request], seen: Seen, gallery: Gallery, *, samples: int) -> list[Shown]:
    """The captions whose pictures were kept, each with the real picture nearest to the first of its own.

    Args:
        samples: pictures a caption.
    """
    network = next((name for name in seen.observed.features if name in gallery.features), None)
    if not seen.first or network is None:
        return []
    first = seen.observed.features[network][: len(seen.first) : samples]
    rows = nearest(first, gallery.features[network])[:, 0].tolist()
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
    metrics: Iterable[PictureMetric],
    draw: Draw,
    requests: Sequence[Request],
    seen: Seen,
    gallery: Gallery,
    *,
    count: int,
    batch_size: int,
) -> Closest | None:
    """The generated pictures that are nearest to a real one, by the first measure of memorisation.

    Only their features were kept, so they are drawn once more. Without such a measure there are none.

    Args:
        metrics: those that have just judged the pictures.
        count: how many pairs.
    """
    judge = next((each for each in metrics if isinstance(each, Memorisation)), None)
    if judge is None or judge.limit is None:
        return None
    made, real = (table[judge.features] for table in (seen.observed.features, gallery.features))
    rows = torch.arange(len(real)) if judge.seen is None else judge.seen
    copies = find_copies(made, Table(parts=[real], order=rows), limit=judge.limit)
    chosen = [requests[number] for number in copies.generated[:count].tolist()]
    pictures = torch.cat([draw(part).cpu() for part in batched(chosen, batch_size)])
    nearest_rows = rows[copies.real[:count]].tolist()
    return Closest(
        features=judge.features,
        quantile=judge.quantile,
        limit=judge.limit,
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
            for request, picture, row, distance in zip(
                chosen, pictures, nearest_rows, copies.distance[:count].tolist(), strict=True
            )
        ],
    )


def _right_picture(gallery: Gallery, request: Request) -> Tensor | None:
    return None if request.row == ELSEWHERE else gallery.picture(request.row)
