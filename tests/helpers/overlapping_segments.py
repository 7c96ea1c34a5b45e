"""Segments that begin with tokens of the one before, read the slow, obvious way."""

import torch


@torch.no_grad()
def one_by_one(decoder, tokens, start_token, overlap):
    """Log-probabilities after every token of a document, T x V, each from its own slice of it.

    The memory of evaluation is forgotten first, and holds the document then.
    """
    log_probs, stride, retrieve = [], decoder.window - overlap, None
    source = torch.cat([torch.tensor([start_token]), tokens[:-1]]).unsqueeze(0)
    if decoder.memory is not None:
        decoder.memory.reset()
        decoder.memory.begin(1, torch.tensor([True]), False, source.device)
        retrieve = decoder.memory.retrieve
    for start in range(0, len(tokens), stride):
        begin, stop = max(0, start - overlap), min(start + stride, len(tokens))
        for place in range(start, stop):
            memorized = torch.tensor([start - begin])
            segment = source[:, begin : place + 1]
            reading = decoder.read(segment, retrieve, memorized=memorized)
            log_probs.append(reading.scores[0, -1].log_softmax(dim=-1))
        if decoder.memory is not None:
            keys, values, search_keys = decoder.entries(source[:, begin:stop])
            decoder.memory.write(
                keys[:, :, start - begin :],
                values[:, :, start - begin :],
                torch.ones(1, stop - start, dtype=torch.bool),
                source[:, start:stop],
                None if search_keys is None else search_keys[:, start - begin :],
            )
    return torch.stack(log_probs)
