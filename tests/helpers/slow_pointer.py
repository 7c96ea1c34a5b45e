"""The constant pointer of a backbone without a SideNet, one token at a time, from lists."""

import torch
import torch.nn.functional as F

from longmem_fairseq import LongMem
from longmem_fairseq.modules import places as window_places
from longmem_fairseq.modules.places import IN_WINDOW, MATCH_LENGTHS
from longmem_fairseq.modules.pointer import PointerValues

VALUES = PointerValues()


class SlowMemory:
    """Lists of search keys, and of the tokens that came next."""

    def __init__(self, lm: LongMem):
        self.lm, self.decoder = lm, lm.decoder
        self.k = lm.decoder.memory.options["k"]
        self.keys, self.next = [], []

    @torch.no_grad()
    def keys_of(self, tokens):
        """Normalized search keys of 1 x T tokens of a segment, T x E."""
        states = self.decoder.backbone.hidden_state(tokens, self.decoder.search_layer)[0]
        search = self.decoder.search_keys
        return F.normalize((states.double() - search.mean) @ search.rotation.double(), dim=-1)

    def add(self, text):
        """Memorizes a document."""
        tokens = self.lm._tokens(text, False)
        segments = tokens.split(self.decoder.window, dim=1)
        keys = torch.cat([self.keys_of(segment) for segment in segments])
        self.keys += list(keys[:-1])
        self.next += tokens[0, 1:].tolist()

    @torch.no_grad()
    def probs(self, tokens):
        """Probabilities of the token after each of 1 x T, T x V; and the weights of the pointer, T."""
        model = self.decoder.backbone.read(tokens).logits[0].double().softmax(dim=-1)
        if not self.keys:
            return model, torch.zeros(len(model))
        keys, window = self.keys_of(tokens), tokens[0].tolist()
        rows, weights = [], []
        for t in range(len(model)):
            places = self.in_memory(keys[t], window[: t + 1]) + in_window(keys, window, t)
            scores, ids, matches, near = (
                torch.tensor(column) for column in zip(*places, strict=True)
            )
            literal = torch.tensor([VALUES.match[match] for match in matches])
            scored = VALUES.sharpness * scores + VALUES.trust * model[t, ids].log() + literal
            shares = (scored + VALUES.near * near).softmax(dim=-1)
            memory = torch.zeros_like(model[t]).index_add(0, ids, shares)
            best = int(memory.argmax())
            odds = VALUES.bias + VALUES.slope * scores.max() + VALUES.agreement * memory[best]
            odds = odds + VALUES.weight_match[matches[ids.tolist().index(best)]]
            odds = odds + VALUES.weight_near * (shares * near).sum()
            weights.append(torch.sigmoid(odds))
            rows.append((1 - weights[-1]) * model[t] + weights[-1] * memory)
        return torch.stack(rows), torch.stack(weights)

    def in_memory(self, key, context):
        """Similarity, token, class of literal matches and whether it is near, of the best places."""
        scores, places = (torch.stack(self.keys) @ key).topk(min(self.k, len(self.keys)))
        found = zip(scores.tolist(), places.tolist(), strict=True)
        return [
            (score, self.next[i], match_class(self.next[:i], context), False) for score, i in found
        ]


def in_window(keys, tokens, t):
    """As :meth:`SlowMemory.in_memory`, of the places before token *t* of a window."""
    places = []
    for i in range(1, t - window_places.NEAREST + 1):
        score = float(keys[i - 1] @ keys[t])
        length = match_length(tokens[:i], tokens[: t + 1])
        bonus = 0.5 * (length >= 2) + 0.5 * (length >= 3)
        place = (score, tokens[i], match_class(tokens[:i], tokens[: t + 1]), True)
        places.append((score + bonus, place))
    places.sort(key=lambda place: -place[0])
    return [place for _, place in places[:IN_WINDOW]]


def match_length(before, context):
    """How many of the last tokens of both are the same."""
    length = 0
    while length < min(len(before), len(context)) and before[-1 - length] == context[-1 - length]:
        length += 1
    return length


def match_class(before, context):
    """The same as one of MATCH_LENGTHS."""
    return sum(match_length(before, context) >= least for least in MATCH_LENGTHS)


def slow_reading(lm, text, remembered=()):
    """Log-probabilities of a text's tokens, and the weights of the pointer, one segment at a time."""
    tokens, log_probs, weights = lm._tokens(text, False), [], []
    memory, window = SlowMemory(lm), lm.decoder.window
    for document in remembered:
        memory.add(document)
    before = len(memory.keys)
    for start in range(0, tokens.size(1) - 1, window):
        stop = min(start + window, tokens.size(1) - 1)
        probs, weight = memory.probs(tokens[:, start:stop])
        following = tokens[0, start + 1 : stop + 1].unsqueeze(-1)
        log_probs.append(probs.log().gather(-1, following).squeeze(-1))
        weights.append(weight)
        # now the text so far is a document of its own
        del memory.keys[before:], memory.next[before:]
        keys = [memory.keys_of(s) for s in tokens[:, :stop].split(window, dim=1)]
        memory.keys += list(torch.cat(keys)[:-1])
        memory.next += tokens[0, 1:stop].tolist()
    return torch.cat(log_probs).float(), torch.cat(weights).float()
