"""What is taken from an answer: a table per kind of problem."""

from __future__ import annotations

import itertools
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop.grading.extract import extract_code, final_channel, is_harmony, why_none
from loop.grading.problem import Problem

PROMPT = 'from typing import List\n\n\ndef twice(x: int) -> List[int]:\n    """Return x two times.\n    """\n'
HUMANEVAL = Problem(task_id="h", statement="", prompt_code=PROMPT, entry_point="twice", kind="humaneval", payload={})
MBPP = Problem(task_id="m", statement="", entry_point="twice", kind="mbpp", payload={})
SIGNATURE = MBPP.model_copy(update={"prompt_code": "def twice(x):"})
STDIN = Problem(task_id="l", statement="", kind="livecodebench", payload={})
STARTER = "class Solution:\n    def twice(self, x: int) -> int:\n        "
METHOD = Problem(task_id="f", statement="", prompt_code=STARTER, entry_point="twice", kind="livecodebench", payload={})

BODY = "    return [x, x]\n"
WHOLE = "def twice(x):\n    return [x, x]\n"
PROGRAMS = {
    # a continuation
    "body": BODY,
    "body, then prose": BODY + "\nThis returns the number twice.\n\nNote that it is a list.",
    "body, then a closing fence": BODY + "```\n\nThis returns it twice.",
    "body without its first indentation": "y = x\n    return [x, y]\n",
    "block without its first indentation": "for y in (x,):\n        z = y\n    return [x, z]",
    "body at the margin": "y = x\nreturn [x, y]",
    "block at the margin": "for y in (x,):\n    z = y\nreturn [x, z]",
    "body with a helper of the same name inside": "    def twice(y):\n        return [y, y]\n    return twice(x)\n",
    "body with a string at the margin": '    y = """\nSome text here, not code\n"""\n    return [x, x]\nSo that is it.',
    "body in a fence": "```python\n    return [x, x]\n```",
    "body in a fence at the margin": "Sure:\n```\nreturn [x, x]\n```\nDone.",
    "tabs": "\treturn [x, x]\n",
    # a whole program
    "whole": WHOLE,
    "whole after prose": "Here is the solution to the task:\n\n" + WHOLE + "\nIt returns a list. Hope this helps!",
    "the prompt again": PROMPT + BODY,
    "the prompt's last part again": PROMPT[PROMPT.index("def") :] + BODY,
    "the prompt again, in a fence": f"Sure:\n```python\n{PROMPT}{BODY}```\nThat is it.",
    "the prompt again, in an unclosed fence": f"```python\n{PROMPT}{BODY}",
    "the prompt again, between prose": f"Here it is.\n\n{PROMPT}{BODY}\nIt returns a list.",
    "whole, with a main block": WHOLE + "\n\nif __name__ == '__main__':\n    print(twice(3))\n",
    "as few-shot MBPP has it": f"[BEGIN]\n{WHOLE}[DONE]\n",
    "whole with an import": "import math\n\n" + WHOLE,
    "a lambda": "twice = lambda x: [x, x]\n",
    "a class as the entry point": "class twice(list):\n    def __init__(self, x):\n        super().__init__([x, x])\n",
    # fences
    "closed fence": f"Sure!\n\n```python\n{WHOLE}```\nThat is all.",
    "unclosed fence": f"Sure!\n\n```python\n{WHOLE}",
    "fence without a language": f"```\n{WHOLE}```",
    "tildes": f"~~~py\n{WHOLE}~~~",
    "four backticks": f"````python\n{WHOLE}````",
    "fence in a list item": "1. So:\n   ```python\n   def twice(x):\n       return [x, x]\n   ```\n",
    "the last of two": f"```python\ndef twice(x):\n    return x\n```\nNo, better:\n```python\n{WHOLE}```\n",
    "a closed one before an open one": f"```python\n{WHOLE}```\nFor example\n```python\ntwice(",
    "an example after it": f"```python\n{WHOLE}```\nUse it so:\n```python\nprint(twice(2))\n```\n",
    "its output after it": f"```python\n{WHOLE}```\nOutput:\n```text\n[2, 2]\n```\n",
    "CRLF": f"```python\n{WHOLE}```\n".replace("\n", "\r\n"),
    # thoughts
    "thoughts": f"<think>\nMaybe\n```python\ndef twice(x): return 1\n```\n</think>\n\n```python\n{WHOLE}```",
    "thoughts with an open fence in them": f"<think>\n```python\ndef twice(x): return 1\n</think>\n{WHOLE}",
    "thoughts between two answers": f"```python\ndef twice(x): return 1\n```\n<think>No.</think>\n```python\n{WHOLE}```",
    "thoughts that never end, after the answer": f"```python\n{WHOLE}```\n<think>Or rather\n```python\ntwice = 1\n```",
    "thoughts that the template opened": f"Perhaps def twice(x): return 3\n</think>\n{WHOLE}",
}


def works(code: str | None) -> bool:
    """Runs our own text from the table above, and nothing else."""
    assert code is not None
    space: dict[str, object] = {}
    exec(code, space)
    return bool(space["twice"](2) == [2, 2])  # type: ignore[operator]


IN_FULL = {name: text for name, text in PROGRAMS.items() if not re.search("body|block|tabs", name)}


@pytest.mark.parametrize("name", PROGRAMS)
def test_whole_programs_are_taken_out_of_answers(name: str) -> None:
    code = extract_code(PROGRAMS[name], HUMANEVAL, prefilled_fence=False)
    assert works(code) and "List" in str(code)  # with the prompt's imports
    assert works(extract_code(PROGRAMS[name], SIGNATURE, prefilled_fence=False))
    if name in IN_FULL:
        assert works(extract_code(PROGRAMS[name], MBPP, prefilled_fence=False))


@pytest.mark.parametrize("problem", [HUMANEVAL, SIGNATURE])
@pytest.mark.parametrize(
    "completion",
    [
        WHOLE,
        WHOLE + "```",
        WHOLE + "```\n\nIt returns the list.\n```python\nprint(twice(1))\n```",
        WHOLE.rstrip() + "```\nDone",
        "```python\n" + WHOLE + "```",
        "\n\n" + WHOLE,
        BODY + "```",
        "return [x, x]\n```",
        PROMPT + BODY + "```\n",
        "# Twice\n" + WHOLE + "# that is all: no prose is cut here\n",
    ],
)
def test_answers_after_a_prefilled_fence(completion: str, problem: Problem) -> None:
    assert works(extract_code(completion, problem, prefilled_fence=True))


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "  \n\t\n",
        "I am sorry, but I cannot do that.",
        "The function returns the sum of both. It is easy to write.",
        "<think>def twice(x): return [x, x]",
        "<think>\nlong thoughts\n</think>\n",
        "```python\n```",
        "Sure:\n```python\n\n",
        "x = 1\n" * 400_000,
    ],
)
@pytest.mark.parametrize("problem", [HUMANEVAL, SIGNATURE, MBPP, STDIN, METHOD])
def test_no_code(completion: str, problem: Problem) -> None:
    assert extract_code(completion, problem, prefilled_fence=False) is None


def test_nothing_after_a_prefilled_fence() -> None:
    for completion in ("", "\n", "```\nSorry.", "```"):
        assert extract_code(completion, SIGNATURE, prefilled_fence=True) is None


@pytest.mark.parametrize(
    "completion",
    [
        "n = int(input())\nprint(2 * n)\n",
        "Read it:\n\n```python\nn = int(input())\nprint(2 * n)\n```",
        "So\nn = int(input())\nprint(2 * n)\nDone.",
        "```python\nprint(1)\n```\nNo:\n```python\nn = int(input())\nprint(2 * n)\n```\nThat is all.",
        "Unclosed:\n```python\nn = int(input())\nprint(2 * n)\n",
        "<think>print(3)</think>\nn = int(input())\nprint(2 * n)\n",
        "```python\nn = int(input())\nprint(2 * n)\n```\nIt prints\n```text\n4\n```\n",
    ],
)
def test_a_program_that_reads_stdin(completion: str) -> None:
    code = extract_code(completion, STDIN, prefilled_fence=False)
    assert code is not None and code.removesuffix("\n") == "n = int(input())\nprint(2 * n)"


@pytest.mark.parametrize(
    "completion",
    [
        "```python\nclass Solution:\n    def twice(self, x):\n        return 2 * x\n```",
        "class Solution:\n    def twice(self, x):\n        return 2 * x\n\nThat is all.",
        "```python\nclass Solution:\n    def twice(self, x):\n        return 2 * x\n",
        "```python\nclass Solution:\n    def twice(self, x): return 0\n```\nNo:\n```python\nfrom typing import List\n\n\n"
        "class Helper:\n    two = 2\n\n\nclass Solution:\n    def twice(self, x):\n        return Helper.two * x\n```\nDone.",
        "<think>class Solution: pass</think>So:\n\nclass Solution:\n    def twice(self, x):\n        return 2 * x\n\n\n"
        "print(Solution().twice(1))",
        STARTER + "return 2 * x\n",
        f"```python\n{STARTER}return 2 * x\n```",
        "return 2 * x",
        "        return 2 * x\n",
        "```python\n        y = x\n        return x + y\n```",
    ],
)
def test_a_method_under_starter_code(completion: str) -> None:
    code = extract_code(completion, METHOD, prefilled_fence=False)
    space: dict[str, object] = {}
    exec(code or "", space)
    assert space["Solution"]().twice(4) == 8  # type: ignore[operator]


def test_answers_to_the_plus_suites() -> None:
    humaneval = HUMANEVAL.model_copy(update={"kind": "plus"})
    for completion in PROGRAMS.values():
        assert extract_code(completion, humaneval, False) == extract_code(completion, HUMANEVAL, False)
    prompt = '"""\nWrite a function that gives x twice.\nassert twice(1) == [1, 1]\n"""\n'
    mbpp = HUMANEVAL.model_copy(update={"kind": "plus", "prompt_code": prompt})
    assert all(works(extract_code(completion, mbpp, prefilled_fence=False)) for completion in IN_FULL.values())
    assert works(extract_code(prompt + WHOLE + "```\nDone.", mbpp, prefilled_fence=True))
    assert works(extract_code(f"```python\n{prompt}{WHOLE}```", mbpp, prefilled_fence=False))


def test_helpers_of_the_prompt_go_with_a_whole_program() -> None:
    prompt = "import math\n\n\ndef helper(x):\n    return math.floor(x)\n\n\ndef twice(x):\n"
    problem = HUMANEVAL.model_copy(update={"prompt_code": prompt})
    assert works(extract_code("```python\ndef twice(x):\n    return [helper(x), x]\n```", problem, False))
    assert extract_code("```python\nfrom __future__ import annotations\ndef twice(x): ...\n```", problem, False) == (
        "from __future__ import annotations\ndef twice(x): ..."
    )


HOSTILE = [
    " " * 900_000,
    "`" * 900_000,
    "```" + "a" * 900_000 + "`",
    "\n".join(["```" + "a" * 190 + "`"] * 4000),
    "a[" * 400_000,
    "a.b, " * 150_000 + "!",
    "(" * 900_000,
    "def twice" * 100_000,
    "    def twice\n" * 60_000,
    "<think>" * 120_000,
    "</think>" * 110_000,
    "<think></think>" * 60_000,
    '"""' * 300_000,
    "for " * 200_000,
    "from a import b" * 60_000,
    "\t\n" * 400_000,
    "x = " * 200_000,
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_text_takes_no_time(number: int) -> None:
    start = time.process_time()
    for problem, prefilled in itertools.product((HUMANEVAL, METHOD), (False, True)):
        extract_code(HOSTILE[number], problem, prefilled)
    assert time.process_time() - start < 30.0  # a second at most; what is not linear would take hours


LINES = ["```", "```python", "~~~", "<think>", "</think>", "def twice(x):", "    return x", "\treturn x", "text", "",
         '"""', "class A:", "\r", "\x00", "\ud800", "return 1", "@d", "import x", "    def twice(x):", "x = (", "'''"]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(LINES)), st.booleans())
def test_it_never_raises(lines: list[str], prefilled: bool) -> None:
    for problem in (HUMANEVAL, SIGNATURE, MBPP, STDIN, METHOD):
        code = extract_code("\n".join(lines), problem, prefilled)
        assert code is None or code.strip()


ANALYSIS = (
    "<|channel|>analysis<|message|>Perhaps\n```python\ndef twice(x): return 1\n"  # with a fence that is not closed
)
FINAL = "<|start|>assistant<|channel|>final<|message|>"
HARMONY = {
    "a final channel": f"{ANALYSIS}<|end|>{FINAL}```python\n{WHOLE}```",
    "a closed fence in the analysis": f"{ANALYSIS}```\n<|end|>{FINAL}{WHOLE}",
    "its end": f"{ANALYSIS}<|end|>{FINAL}```python\n{WHOLE}```<|return|>",
    "no end of the analysis": f"{ANALYSIS}{FINAL}```python\n{WHOLE}```",
    "commentary": f"{ANALYSIS}<|end|><|start|>assistant<|channel|>commentary<|message|>```\n1\n```<|end|>{FINAL}{WHOLE}",
    "a call": f"<|channel|>commentary to=functions.run <|constrain|>json<|message|>{{}}<|end|>{FINAL}{WHOLE}",
    "only a final channel": f"<|channel|>final<|message|>{WHOLE}",
    "the last final channel": f"<|channel|>final<|message|>twice = 1<|end|>{FINAL}{WHOLE}",
    "a constraint": f"<|channel|>final <|constrain|>python<|message|>{WHOLE}",
    "an open fence": f"{ANALYSIS}<|end|>{FINAL}Here:\n```python\n{WHOLE}",
    "without special tokens": f"analysisPerhaps\n```python\ndef twice(x): return 1\nassistantfinal```python\n{WHOLE}```",
    "nothing but channels' names": f"analysisassistantcommentaryHm.assistantfinal{WHOLE}",
}


@pytest.mark.parametrize("name", HARMONY)
def test_of_a_harmony_answer_the_final_channel_counts(name: str) -> None:
    for problem, prefilled in itertools.product((HUMANEVAL, SIGNATURE, MBPP), (False, True)):
        assert works(extract_code(HARMONY[name], problem, prefilled_fence=prefilled))


@pytest.mark.parametrize(
    "text",
    [
        ANALYSIS,
        ANALYSIS + "```",
        f"{ANALYSIS}<|end|><|start|>assistant<|channel|>final",
        f"<|channel|>commentary<|message|>{WHOLE}<|end|>",
        f"<|channel|>analysis final<|message|>{WHOLE}",
        f"\n<|channel|>{WHOLE}",
    ],
)
def test_a_harmony_answer_without_final_channel_is_none(text: str) -> None:
    assert extract_code(text, MBPP, prefilled_fence=False) is None
    assert why_none(text) == "the answer has no final channel: it ended in its analysis"


@pytest.mark.parametrize(
    "text",
    [
        f"```python\nMARK = '<|channel|>final<|message|>'\n{WHOLE}```",
        f"{WHOLE}\nanalysis = 'assistantfinal'\n",
        f"analysis = [1]\n{WHOLE}",
        f"The analysis: assistantfinal is a word.\n```python\n{WHOLE}```",
    ],
)
def test_other_text_is_not_taken_for_harmony(text: str) -> None:
    assert works(extract_code(text, MBPP, prefilled_fence=False))


PIECES = st.sampled_from(["<|channel|>", "<|message|>", "<|start|>assistant", "<|end|>", "<|return|>", "final",
                          "analysis", " ", "<|", "<|constrain|>", "assistantfinal", "```python\n", "x = 1\n", "é"])  # fmt: skip


@given(st.lists(PIECES, max_size=30).map("".join), st.booleans())
def test_any_mixture_of_marks_is_read(text: str, prefilled: bool) -> None:
    extract_code(text, MBPP, prefilled_fence=prefilled)
    why_none(text)
    if is_harmony(text):
        final = final_channel(text)
        assert final is None or final in text
        if text.lstrip().startswith(
            "<|channel|>"
        ):  # what was decoded without its marks has none, or they are the answer's own
            assert final is None or "<|channel|>" not in final


@settings(max_examples=40)
@given(st.text(max_size=40), st.text(max_size=40))
def test_what_is_thought_changes_nothing(thought: str, answer: str) -> None:
    """Whatever the analysis holds short of a mark, the answer is what the final channel says."""
    whole = f"<|channel|>analysis<|message|>{thought}<|end|>{FINAL}{answer}<|return|>"
    if "<|" not in thought + answer:
        assert final_channel(whole) == answer
        alone = extract_code(answer, MBPP, prefilled_fence=False)
        assert is_harmony(answer) or extract_code(whole, MBPP, prefilled_fence=False) == alone


@pytest.mark.parametrize("piece", ["<|channel|>", "<|channel|>final<|message|>", "<|channel|>final ", "assistantfinal"])
def test_many_marks_take_no_time(piece: str) -> None:
    began = time.process_time()
    extract_code("<|channel|>" + piece * (900_000 // len(piece)), MBPP, prefilled_fence=False)
    assert time.process_time() - began < 20  # what is not linear takes hours
