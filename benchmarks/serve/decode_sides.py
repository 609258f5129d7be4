"""Greedy decoding of a few texts side by side: our processor executor, and llama.cpp through its C interface."""

import ctypes
import time

import numpy as np
from outrider import _core

PAGE = 16


def pieces(texts, size):
    """`size` consecutive tokens of each text at a time: (position, the texts' tokens there)."""
    for position in range(0, len(texts[0]), size):
        yield position, [text[position : position + size] for text in texts]


class Ours:
    """Texts of at most `context` tokens, `batch` of them at once. all_logits: greedy tokens are taken from them."""

    def __init__(self, folder, parent, form, threads, batch, context, step_tokens=32, all_logits=False):
        self.batch, self.step_tokens, self.all_logits = batch, step_tokens, all_logits
        pages = -(-context // PAGE)
        self.pages = [np.arange(pages, dtype=np.int32) + pages * b for b in range(batch)]
        self.passes = _core.CpuPasses(
            folder, parent, form, threads=threads, context=context, pages=pages * batch, step_tokens=step_tokens * batch
        )
        self.experts = self.passes.shape["experts"]
        self.all_bytes = self.passes.fixed_bytes + self.passes.ffn_bytes((1 << max(self.experts, 1)) - 1)
        self.previous = [-1] * batch
        self.costs, self.distinct = [], []

    def begin(self):
        self.previous = [-1] * self.batch
        self.costs, self.distinct = [], []

    def runs(self, texts, position, logits_from):
        if not self.experts:
            experts = [np.zeros(0, np.uint8)] * self.batch
        else:
            runs = map(_core.CpuRoute, texts, [position] * self.batch, self.pages, self.previous)
            experts = np.split(self.passes.route(list(runs)), np.cumsum([len(ids) for ids in texts])[:-1])
            self.previous = [int(e[-1]) for e in experts]
        self.distinct.append(len({int(e) for chosen in experts for e in chosen}))
        return [
            _core.PassRun(ids, chosen, position, pages, logits_from)
            for ids, chosen, pages in zip(texts, experts, self.pages, strict=True)
        ]

    def step(self, texts, position, logits_from):
        """Logits, one row for each token of `texts` from number `logits_from` on; texts are as long as each other."""
        rows, cost = self.passes.run(self.runs(texts, position, logits_from))
        self.costs.append(cost)
        return rows

    def choose(self, texts, position):
        """The token that each text goes on with."""
        last = len(texts[0]) - 1
        if self.all_logits:
            return self.step(texts, position, last).argmax(axis=1)
        ids, cost = self.passes.greedy(self.runs(texts, position, last))
        self.costs.append(cost)
        return ids[:, 0]

    def read_prompts(self, prompts):
        """The token that each prompt goes on with."""
        self.begin()
        for position, texts in pieces(prompts, self.step_tokens):
            chosen = self.choose(texts, position)
        self.costs, self.distinct = [], []
        return chosen


class Llama:
    """llama.cpp with `batch` sequences of at most `context` tokens in one batch."""

    def __init__(self, path, threads, batch, context, flash_attention):
        import llama_cpp

        self.api, self.batch = llama_cpp, batch
        llama_cpp.llama_backend_init()
        silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
        self.kept = silence
        of_model = llama_cpp.llama_model_default_params()
        of_model.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), of_model)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = (context + PAGE) * batch
        options.n_seq_max = batch
        options.n_threads = options.n_threads_batch = threads
        options.flash_attn_type = int(flash_attention)
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        if not self.model or not self.context:
            raise RuntimeError(f"{path}: llama.cpp cannot load it")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.tokens = llama_cpp.llama_batch_init(512 * batch, 0, 1)

    def choose(self, texts, position):
        """The token that each text goes on with, from the logits of its last one."""
        tokens, count = self.tokens, 0
        last = []
        for sequence, ids in enumerate(texts):
            for at, number in enumerate(ids):
                tokens.token[count] = int(number)
                tokens.pos[count] = position + at
                tokens.n_seq_id[count] = 1
                tokens.seq_id[count][0] = sequence
                tokens.logits[count] = at + 1 == len(ids)
                count += 1
            last.append(count - 1)
        tokens.n_tokens = count
        if self.api.llama_decode(self.context, tokens) != 0:
            raise RuntimeError("llama_decode failed")
        pointers = [self.api.llama_get_logits_ith(self.context, row) for row in last]
        return [np.ctypeslib.as_array(pointer, shape=(self.vocab,)).argmax() for pointer in pointers]

    def read_prompts(self, prompts):
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        return self.choose(prompts, 0)


def greedy(side, prompts, count):
    """Milliseconds per step, the prompts apart but the choice of tokens included, and the texts [batch, count]."""
    texts = np.zeros((len(prompts), count), np.int32)
    chosen = side.read_prompts(prompts)
    start = time.perf_counter()
    for at in range(count):
        texts[:, at] = chosen
        chosen = side.choose(list(texts[:, at : at + 1]), len(prompts[0]) + at)
    return 1e3 * (time.perf_counter() - start) / count, texts
