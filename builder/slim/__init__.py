"""GPU code for other chips out of shared objects.

    chips      which compiled code a chip can run
    elf        the parts of an ELF file that pruning needs
    fatbin     NVIDIA's containers of GPU code, wherever in a file they are
    loose      compressed cubins outside containers
    shrink     take the freed bytes out of the file
    prune      one file: read, decide, write, read again and compare
    symbols    what a library offers to others and takes from them
    stubs      the libraries that a stub may take the place of
    stub       a stub of one library; stub_code: its text in assembler

Runs inside build stages: Python 3.10 and the standard library only.
"""
