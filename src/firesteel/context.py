"""Token ids of prompts, for any chat template, and the reading of responses.

Sampled tokens are never tokenised again: in mode "full" a new turn is only the ids that follow the sampled
response (the bridge), in mode "window" every step starts a new stream with one complete prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError

from firesteel.errors import ConfigError, ContextOverflow, ModelError
from firesteel.plugins import load
from firesteel.prompts import PROMPTS, TAGS, Pair, PromptSet, format_step
from firesteel.responses import ParsedResponse as ParsedResponse
from firesteel.responses import parse_response as parse_response
from firesteel.types import Observation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODES = ("full", "window")

_CACHED_TEXTS = 8192
_USER_MARK = "usermark7319"
_ASSISTANT_MARK = "assistantmark4862"
_PROBES = ("You see a desk 1.", " \n\tTwo lines,\nindented. \n", "12", "<b>h\u00e9 \u2192 {{x}}</b>", "x\n\n")


@dataclass(frozen=True, slots=True)
class HistoryStep:
    """One past step: what was seen, what was done, and with which reasoning under which tag."""

    observation: str
    action: str
    reasoning: str = ""
    tag: Literal["explore", "think"] | None = None


class _Frame:
    """A chat template around one text, reduced to constant ids before and after it.

    `render` writes the whole text of which only the part inside changes. Cutting at added tokens (`<|im_end|>`)
    is exact, because tokenizers split there first; whether it is exact for this template is checked on a few
    probe texts, and where it is not (templates that rewrite content, tokenizers that glue a space to the
    beginning) the whole text is rendered and tokenised each time.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, render: Callable[[str], str]) -> None:
        self._tokenizer = tokenizer
        self._render = render
        self._encode = lru_cache(maxsize=_CACHED_TEXTS)(self._encode_text)
        before, after = _split_once(render(_USER_MARK), _USER_MARK, "the user's message")
        added = _added_tokens(tokenizer)
        ends = [match.end() for match in added.finditer(before)]
        start = added.search(after)
        cut_before, cut_after = (ends[-1] if ends else 0), (start.start() if start else len(after))
        self._lead, self._tail = before[cut_before:], after[:cut_after]
        self._head_ids = self._encode_text(before[:cut_before])
        self._rest_ids = self._encode_text(after[cut_after:])
        self._strips = render(f" \n{_USER_MARK}\n ") == f"{before}{_USER_MARK}{after}"
        self.is_constant = all(self._compose(probe) == list(self._encode_text(render(probe))) for probe in _PROBES)

    def _encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def _compose(self, text: str) -> list[int]:
        inside = text.strip() if self._strips else text
        return [*self._head_ids, *self._encode(f"{self._lead}{inside}{self._tail}"), *self._rest_ids]

    def token_ids(self, text: str) -> list[int]:
        """The ids of the template with `text` inside."""
        return self._compose(text) if self.is_constant else list(self._encode(self._render(text)))


def _split_once(text: str, mark: str, what: str) -> tuple[str, str]:
    """The text before and after `mark`, which a template must show exactly once."""
    parts = text.split(mark)
    if len(parts) != 2:
        raise ModelError(
            f"the chat template shows {what} {len(parts) - 1} times in a conversation instead of once; use a template "
            "that keeps every message (mode 'window' needs only the user's)"
        )
    return parts[0], parts[1]


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """A pattern for every added token of the tokenizer; one that never matches where there are none."""
    contents = sorted((token.content for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    return re.compile("|".join(re.escape(content) for content in contents) or r"(?!)")


class ContextBuilder:
    """Turns an episode so far into token ids.

    Args:
        tokenizer: any tokenizer with a chat template and an EOS token.
        prompts: a name of `PROMPTS`, "package.module:object", or a `PromptSet`.
        mode: "full" appends turns to what was sampled; "window" renders a complete prompt for every step.
        history_length: pairs that a window shows at most.
        history_reasoning: whether a window shows past reasoning, not only past actions.
        show_admissible: whether prompts list the admissible actions, where the environment gives them.
        max_prompt_tokens: longest opening or window; a window drops its oldest pairs first.
        template_options: passed to the chat template, such as `{"enable_thinking": False}`.

    Attributes:
        end_token_id: the token that closes an assistant turn; a generator must stop at it.
        stop_token_ids: every token that ends a response (`end_token_id` and EOS), sorted.
        parse: how the prompt set reads a response.

    Raises:
        ModelError: the chat template is missing, loses messages, or cannot render a second turn.
        ConfigError: an unknown mode or prompt set.

    An observation that contains the text of a special token is tokenised as that token, as in
    `apply_chat_template`; environments that pass on foreign text should remove such text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: str | PromptSet,
        mode: str = "full",
        history_length: int = 5,
        history_reasoning: bool = False,
        show_admissible: bool = False,
        max_prompt_tokens: int | None = None,
        template_options: dict[str, Any] | None = None,
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"context mode '{mode}' does not exist; known: {', '.join(MODES)}")
        self.tokenizer = tokenizer
        self.prompts: PromptSet = load(prompts, PROMPTS, kind="prompts") if isinstance(prompts, str) else prompts
        self.mode = mode
        self.history_length = history_length
        self.history_reasoning = history_reasoning
        self.show_admissible = show_admissible
        self.max_prompt_tokens = max_prompt_tokens
        self._template_options = dict(template_options or {})
        self._require_template()
        self.eos_token_id: int = tokenizer.eos_token_id
        self.end_token_id, self._closes_turns = self._find_end_token()
        self.stop_token_ids = tuple(sorted({self.end_token_id, self.eos_token_id}))
        self._opening = _Frame(tokenizer, self._render_opening)
        self._bridge = self._make_bridge() if mode == "full" else None
        self._response_lead, self._response_lead_ids = self._find_response_lead()
        self.parse = self.prompts.parse
        self._keeps_tags = all(self._round_trip(tag) == tag for tag in TAGS)

    # prompts

    def first(self, goal: str, observation: Observation) -> list[int]:
        """The opening prompt, up to where the assistant begins.

        Raises:
            ContextOverflow: it is longer than `max_prompt_tokens`.
        """
        if self.prompts.whole is not None:
            text = self.prompts.whole(self.tokenizer, observation.text, self._template_options)
            token_ids = list(self.tokenizer.encode(text, add_special_tokens=False))
        else:
            admissible = self._admissible(observation)
            text = self.prompts.opening(goal=goal, observation=observation.text, admissible=admissible)
            token_ids = self._opening.token_ids(text)
        self._refuse_overflow(token_ids)
        return token_ids

    def next_turn(self, previous_ended_with_eos: bool, goal: str, observation: Observation) -> list[int]:
        """The ids to append after a sampled response: the end of its turn, the observation, the assistant's start.

        Args:
            previous_ended_with_eos: whether the last sampled token is `end_token_id`. Where the template closes
                turns and the response lacks it (cut off by the token limit), it is part of the returned ids.
            goal: the task's instruction, for prompt sets that repeat it.
            observation: what the response's action led to.

        Raises:
            ConfigError: the mode is "window", where nothing is appended.
        """
        if self._bridge is None:
            raise ConfigError("next_turn appends to the context, which mode 'window' never does; call render instead")
        text = self.prompts.turn(goal=goal, observation=observation.text, admissible=self._admissible(observation))
        token_ids = self._bridge.token_ids(text)
        return token_ids[1:] if previous_ended_with_eos and self._closes_turns else token_ids

    def render(
        self, goal: str, steps: Sequence[HistoryStep], observation: Observation, step_index: int | None = None
    ) -> list[int]:
        """The complete prompt of one step: the last `history_length` of `steps` and the current observation.

        Args:
            goal: the task's instruction.
            steps: past steps, oldest first.
            observation: what is seen now.
            step_index: number of steps taken so far; None means `len(steps)`.

        Raises:
            ContextOverflow: even without history it is longer than `max_prompt_tokens`.
        """
        num_steps = len(steps) if step_index is None else step_index
        if self.prompts.whole is not None and num_steps == 0:
            return self.first(goal, observation)
        shown = steps[len(steps) - min(self.history_length, len(steps)) :]
        history = [self._pair(step) for step in shown]
        admissible = self._admissible(observation)
        while True:
            text = self.prompts.window(
                goal=goal, num_steps=num_steps, history=history, observation=observation.text, admissible=admissible
            )
            token_ids = self._opening.token_ids(text)
            if not history or self.max_prompt_tokens is None or len(token_ids) <= self.max_prompt_tokens:
                break
            history = history[1:]
        self._refuse_overflow(token_ids)
        return token_ids

    # responses

    def encode_response(self, text: str) -> list[int]:
        """The ids of a response written by hand (an expert's), tokenised as after the assistant's start, with its end.

        `first(...) + encode_response(r) + next_turn(True, goal, o)` equals the template's own rendering of the same
        conversation, for templates that leave earlier turns unchanged.
        """
        num_lead = len(self._response_lead_ids)
        token_ids = self.tokenizer.encode(self._response_lead + text, add_special_tokens=False)
        if token_ids[:num_lead] == self._response_lead_ids:
            token_ids = token_ids[num_lead:]
        else:  # the text's beginning merged with the lead's end, which sampled tokens never do
            token_ids = self.tokenizer.encode(text, add_special_tokens=False)
        return [*token_ids, self.end_token_id]

    def ended(self, token_ids: Sequence[int]) -> bool:
        """Whether a sampled response closed its own turn."""
        return len(token_ids) > 0 and token_ids[-1] == self.end_token_id

    def decode_response(self, token_ids: Sequence[int]) -> str:
        """The text of a response without its end token, as `parse` wants it; the tags are always kept."""
        kept = list(token_ids)
        while kept and kept[-1] in self.stop_token_ids:
            kept.pop()
        return self._decode(kept, skip_special_tokens=self._keeps_tags)

    # the template

    def _admissible(self, observation: Observation) -> tuple[str, ...] | None:
        return observation.admissible if self.show_admissible else None

    def _pair(self, step: HistoryStep) -> Pair:
        if not (self.history_reasoning and step.reasoning):
            return step.observation, step.action
        return step.observation, format_step(step.tag or "think", step.reasoning, step.action)

    def _refuse_overflow(self, token_ids: Sequence[int]) -> None:
        if self.max_prompt_tokens is not None and len(token_ids) > self.max_prompt_tokens:
            raise ContextOverflow(
                f"a prompt without history has {len(token_ids)} tokens, but max_prompt_tokens is "
                f"{self.max_prompt_tokens}; raise it, shorten the observations, or do not list admissible actions"
            )

    def _require_template(self) -> None:
        if not self.tokenizer.chat_template:
            raise ModelError(
                "the tokenizer has no chat template; set tokenizer.chat_template to a Jinja template, "
                "or use the tokenizer of an instruction-tuned model"
            )
        if self.tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no EOS token, so no response could end; set tokenizer.eos_token")

    def _apply(self, contents: Sequence[str], *, add_generation_prompt: bool) -> str:
        """The template's text for a conversation that the user opens."""
        messages = [
            {"role": "assistant" if index % 2 else "user", "content": content} for index, content in enumerate(contents)
        ]
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, **self._template_options
            )
        except TemplateError as error:
            raise ModelError(
                f"the chat template refuses a conversation of {len(messages)} messages (user, assistant, ...): "
                f"{error}; use a template that alternates user and assistant"
            ) from error
        assert isinstance(text, str)
        return text

    def _render_opening(self, text: str) -> str:
        return self._apply([text], add_generation_prompt=True)

    def _render_bridge(self, text: str) -> str:
        """What the template writes after the assistant's words, from the end token on."""
        rendered = self._apply(["user", _ASSISTANT_MARK, text], add_generation_prompt=True)
        _, after = _split_once(rendered, _ASSISTANT_MARK, "the assistant's message")
        return after.lstrip() if self._closes_turns else after

    def _make_bridge(self) -> _Frame:
        bridge = _Frame(self.tokenizer, self._render_bridge)
        if self._closes_turns and bridge.token_ids("")[0] != self.end_token_id:
            raise ModelError(
                "the chat template closes an assistant turn with "
                f"'{self.tokenizer.decode([self.end_token_id])}' at the end of a conversation, but not before another "
                "turn; use a template that closes every assistant turn with the same token"
            )
        return bridge

    def _find_end_token(self) -> tuple[int, bool]:
        """The token that closes an assistant turn, and whether the template writes one at all."""
        rendered = self._apply(["user", _ASSISTANT_MARK], add_generation_prompt=False)
        match = _added_tokens(self.tokenizer).match(rendered.partition(_ASSISTANT_MARK)[2].lstrip())
        if match is None:
            return self.eos_token_id, False
        return self.tokenizer.get_vocab()[match.group()], True

    def _find_response_lead(self) -> tuple[str, list[int]]:
        """The end of the generation prompt, from its last added token on, as text and as ids."""
        prompt = self._render_opening(_USER_MARK)
        starts = [match.start() for match in _added_tokens(self.tokenizer).finditer(prompt)]
        lead = prompt[starts[-1] if starts else 0 :]
        return lead, self.tokenizer.encode(lead, add_special_tokens=False)

    def _decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        text = self.tokenizer.decode(
            token_ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def _round_trip(self, text: str) -> str:
        return self._decode(self.tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=True).strip()
