;; A policy with every hook but `retention` that decides nothing: what remains is the cost of the call itself.
;;
;; Arguments are allocated from ARGUMENTS on, and every call starts there again. Nothing is written
;; below, except for the address and length of the returned list at 0. So results can point to zeros:
;; the first case of each variant of the contract.
(module
  (memory (export "memory") 640)
  (global $next (mut i32) (i32.const 8388608)) ;; ARGUMENTS

  (func (export "cabi_realloc") (param i32 i32 i32) (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
    (global.set $next (i32.add (local.get $at) (local.get $size)))
    (local.get $at))

  ;; A list of this many zeros.
  (func $zeros (param $length i32) (result i32)
    (global.set $next (i32.const 8388608))
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (local.get $length))
    (i32.const 0))

  ;; A result that is not a list: `ok`, or a record of empty lists.
  (func $nothing (result i32)
    (global.set $next (i32.const 8388608))
    (i32.const 16))

  ;; The topic and the partition, then the rows of the batch.
  (func (export "halley:policy/filter-columns@VERSION#filter")
    (param i32 i32 i32 i32) (param $rows i32) (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
    (call $zeros (local.get $rows)))

  (func (export "halley:policy/grouping-columns@VERSION#regroup")
    (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
    (call $nothing))

  ;; There are too many parameters for registers, so they are in memory: the source (16 bytes), the
  ;; message (72), and then the list of absent recipients.
  (func (export "halley:policy/offline@VERSION#decide") (param $parameters i32) (result i32)
    (call $zeros (i32.load offset=92 (local.get $parameters))))

  (func (export "halley:policy/lifecycle@VERSION#init") (param i32 i32) (result i32)
    (call $nothing))

  ;; Gateways call the columns variants.
  (func (export "halley:policy/filter@VERSION#filter") (param i32 i32 i32 i32 i32) (result i32)
    (unreachable))
  (func (export "halley:policy/grouping@VERSION#regroup") (param i32 i32 i32 i32 i32 i32) (result i32)
    (unreachable)))
