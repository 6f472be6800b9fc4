"""A program that `bazel run` starts with arguments of its target."""

_SCRIPT = """#!/usr/bin/env bash
runfiles=$(readlink -f "${RUNFILES_DIR:-$0.runfiles}")
cd "$runfiles/%s"
exec %s "$@"
"""

def launcher(ctx, name, program, arguments, data):
    """Makes a script that runs `program` with `arguments`.

    Args:
        ctx: the rule's context.
        name: the script's file name.
        program: the target of an executable.
        arguments: strings; paths of files are their `short_path`.
        data: the files that it reads.
    Returns:
        the script's DefaultInfo.
    """
    script = ctx.actions.declare_file(name)
    words = [program[DefaultInfo].files_to_run.executable.short_path] + arguments
    quoted = " ".join(["'%s'" % word.replace("'", "'\\''") for word in words])
    ctx.actions.write(script, _SCRIPT % (ctx.workspace_name, quoted), is_executable = True)
    runfiles = ctx.runfiles(files = data).merge(program[DefaultInfo].default_runfiles)
    return DefaultInfo(executable = script, runfiles = runfiles)
