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
    """Texts of at most `context` tokens, `batch` of them at once."""

    def __init__(self, folder, parent, form, threads, batch, context, step_tokens=32):
        self.batch, self.step_tokens = batch, step_tokens
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

    def step(self, texts, position, logits_from):
        """Logits, one row for each token of `texts` from number `logits_from` on; texts are as long as each other."""
        if not self.experts:
            experts = [np.zeros(0, np.uint8)] * self.batch
        else:
            runs = map(_core.CpuRoute, texts, [position] * self.batch, self.pages, self.previous)
            experts = np.split(self.passes.route(list(runs)), np.cumsum([len(ids) for ids in texts])[:-1])
            self.previous = [int(e[-1]) for e in experts]
        runs = [
            _core.PassRun(ids, chosen, position, pages, logits_from)
            for ids, chosen, pages in zip(texts, experts, self.pages, strict=True)
        ]
        rows, cost = self.passes.run(runs)
        self.costs.append(cost)
        self.distinct.append(len({int(e) for chosen in experts for e in chosen}))
        return rows

    def read_prompts(self, prompts):
        """Logits of the last token of each prompt."""
        self.begin()
        for position, texts in pieces(prompts, self.step_tokens):
            rows = self.step(texts, position, len(texts[0]) - 1)
        self.costs, self.distinct = [], []
        return rows


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

    def step(self, texts, position):
        """Logits of the last token of each text."""
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
        return [np.ctypeslib.as_array(pointer, shape=(self.vocab,)) for pointer in pointers]

    def read_prompts(self, prompts):
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        return self.step(prompts, 0)


def greedy(side, prompts, count):
    """Milliseconds per step, the prompts apart but the choice of tokens included, and the texts [batch, count]."""
    rows = side.read_prompts(prompts)
    first = len(prompts[0])
    texts = np.zeros((len(prompts), count), np.int32)
    start = time.perf_counter()
    for at in range(count):
        for b, row in enumerate(rows):
            texts[b, at] = row.argmax()
        next_tokens = list(texts[:, at : at + 1])
        rows = side.step(next_tokens, first + at, 0) if isinstance(side, Ours) else side.step(next_tokens, first + at)
    return 1e3 * (time.perf_counter() - start) / count, texts
