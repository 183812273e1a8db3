# PVH entry: 32-bit protected mode without paging, EBX = start info. Sets up identity page tables
# for the first 4 GiB, enters long mode, calls `guest_main` with the start info's address.
.section .note.pvh, "a", @note
.balign 4
.long 4, 4, 18              # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
.asciz "Xen"
.long start32

.section .text.start, "ax"
.code32
.global start32
start32:
    cli
    cld
    mov esp, offset boot_stack_top
    mov edi, ebx            # kept for the call

    # PML4[0] -> PDPT, PDPT[0..4] -> four directories, each of 512 pages of 2 MiB.
    mov eax, offset pdpt
    or eax, 3
    mov dword ptr [pml4], eax
    mov eax, offset directories
    or eax, 3
    mov ecx, 0
6:  mov dword ptr [pdpt + ecx * 8], eax
    add eax, 0x1000
    inc ecx
    cmp ecx, 4
    jne 6b
    mov eax, 0x83           # present, writable, 2 MiB
    mov ecx, 0
7:  mov dword ptr [directories + ecx * 8], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 2048
    jne 7b

    call enable_long_mode
    push 0x08
    mov eax, offset long_entry
    push eax
    retf

# Also called by application processors: loads the GDT, turns paging and long mode on.
.global enable_long_mode
enable_long_mode:
    pop esi                 # the stack is not the caller's any more
    lgdt [gdt_pointer]
    mov eax, cr4
    or eax, 0x20            # PAE
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, 0xC0000080     # EFER
    rdmsr
    or eax, 0x100           # LME
    wrmsr
    mov esp, offset boot_stack_top
    mov eax, cr0
    or eax, 0x80000001      # PG, PE
    mov cr0, eax
    jmp esi

.code64
long_entry:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov rsp, offset boot_stack_top
    mov edi, edi            # start info, zero-extended
    call guest_main
3:  hlt
    jmp 3b

# The 64-bit entry point of an ELF without a PVH loader: there is no start info.
.global start64
start64:
    cli
    lgdt [rip + gdt_pointer]
    mov rax, offset pml4
    mov rsp, offset boot_stack_top
    xor edi, edi
    call guest_main
4:  hlt
    jmp 4b

.section .data
.balign 16
gdt:
    .quad 0
    .quad 0x00AF9B000000FFFF    # 0x08: 64-bit code
    .quad 0x00CF93000000FFFF    # 0x10: data
    .quad 0x00CF9B000000FFFF    # 0x18: 32-bit code
gdt_end:
.global gdt_pointer
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
    .long 0

.section .bss
.balign 4096
.global pml4
pml4: .skip 4096
pdpt: .skip 4096
directories: .skip 4 * 4096
.balign 16
.skip 65536
boot_stack_top:
