-- Take of all buckets or of none; see `Buckets.reserve`. ARGV: hold id, units, buckets.
-- Answers {0, used and held of each, indices of those that are not enforced and had no room} or {1, shortages} or {2, indices of unknown buckets}.

local hold_id, units, packed = ARGV[4], ARGV[5], ARGV[6]
local buckets = read_buckets(packed, 1)
local keys = { prefix .. 'f:' .. owner, prefix .. 'h:' .. hold_id }
for i, bucket in ipairs(buckets) do keys[i + 2] = prefix .. 'b:' .. bucket.id end
local found = call('MGET', unpack(keys))
local refusal = fenced(found[1])
if refusal then return refusal end

if found[2] then
  local reply, over = { 0 }, {}
  for i, bucket in ipairs(buckets) do
    local s = read_state(found[i + 2])
    if not s or s.kind ~= bucket.kind then s = new_state(bucket, true) end
    if s.kind == LEVEL then leak(s) end
    reply[2 * i], reply[2 * i + 1] = whole(s), s.held
    if not bucket.enforced and not fits(bucket, s, 0) then over[#over + 1] = i - 1 end
  end
  for _, index in ipairs(over) do reply[#reply + 1] = index end
  return reply
end

local states, unknown, short, over = {}, { 2 }, {}, {}
for i, bucket in ipairs(buckets) do
  local s = read_state(found[i + 2])
  if not s or s.kind ~= bucket.kind then s = new_state(bucket, false) end
  if not s.known then
    if bucket.fresh or bucket.kind == GAUGE then
      s.known = true
    else
      unknown[#unknown + 1] = i - 1
    end
  end
  if s.kind == LEVEL then
    leak(s)
    retune(s, bucket)
  end
  if not fits(bucket, s, units_at(units, i)) then
    if bucket.enforced then short[#short + 1] = i else over[#over + 1] = i - 1 end
  end
  states[i] = s
end
if #unknown > 1 then return unknown end

if #short > 0 then
  local reply = { 1 }
  for _, i in ipairs(short) do
    local s = states[i]
    add_shortage(reply, i, buckets[i], s)
    if s.waited < now_s() + WAITED_S / 2 then s.waited, s.moved = now_s() + WAITED_S, true end
  end
  -- Nothing is taken. What is written is that somebody may wait, and a new rate: until the refused one came, the level leaked at the old one.
  for i, s in ipairs(states) do
    if s.moved and found[i + 2] then save(buckets[i], s) end
  end
  return reply
end

local reply = { 0 }
for i, bucket in ipairs(buckets) do
  local s, asked = states[i], units_at(units, i)
  if bucket.taken then s.used = add(s.used, asked) else s.held = add(s.held, asked) end
  save(bucket, s)
  reply[2 * i], reply[2 * i + 1] = whole(s), s.held
end
for _, index in ipairs(over) do reply[#reply + 1] = index end
call('SET', keys[2], struct.pack('<I2c0', #owner, owner) .. packed .. units)
call('SADD', prefix .. 'o:' .. owner, hold_id)
return reply
