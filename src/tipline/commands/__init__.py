"""Commands that a person needs beside the stages, one file a command; `health` is what `tipline status` checks."""
