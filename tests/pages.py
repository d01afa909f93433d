"""The pages of conf/clusters: their commands, taken out of them and run; what a command says on a terminal."""

import os
import re
import shlex

import hosts


class Page:
    """The page of one cluster manager, by the name of its folder."""

    def __init__(self, name):
        self.text = (hosts.ROOT / "conf/clusters" / name / "README.md").read_text()

    def commands(self, heading):
        """The commands of a section, or before the first section."""
        sections = re.split(r"^## ", self.text, flags=re.M)
        (text,) = (
            [s for s in sections[1:] if heading in s.splitlines()[0]] if heading else sections[:1]
        )
        lines = [line[4:] for line in text.splitlines() if line.startswith("    ") or not line]
        return "\n".join(line for line in lines if line)

    def lines(self, heading):
        """The commands of a section that chexspark gets, one each."""
        text = self.commands(heading).replace("\\\n", " ")
        return re.findall(r"^(?:submit|chexspark) .*$", text, flags=re.M)


def with_values(block, **values):
    """A block of ``NAME=value`` lines with other values; every name must stand there."""
    for name, value in values.items():
        block, number = re.subn(
            rf"^((?:export )?{name})=.*$", rf"\1={shlex.quote(str(value))}", block, flags=re.M
        )
        assert number == 1, name
    return block


class Talk:
    """What a command says on a terminal."""

    def __init__(self, process, terminal):
        self.process, self.terminal, self.said = process, terminal, []

    def __iter__(self):
        rest = ""
        while True:
            try:
                rest += os.read(self.terminal, 1 << 16).decode(errors="replace")
            except OSError:  # it has ended
                break
            *texts, rest = re.split(r"[\r\n]+", rest)
            for text in texts:
                self.said.append(text.strip())
                yield text
        self.process.wait()

    def __str__(self):
        return "\n".join(self.said)

    def end(self):
        """Hear it to its end, which must be a good one."""
        for _ in self:
            pass
        assert self.process.returncode == 0, str(self)
